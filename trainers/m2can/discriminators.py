"""Discriminators of domains, behind a gradient reversal (for CDAFA, losses/adversarial.py)."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainers.m2can.batch import Outputs
from trainers.m2can.names import Adversary


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * grad, None


class PairDiscriminator(nn.Module):
    """Tells two domains apart, behind a gradient reversal that warms up.

    The reversal's coefficient is 2/(1+exp(−k/warmup)) − 1 with k = number of earlier calls. k is a buffer, so that it is
    saved with the weights.

    Source: Ganin and Lempitsky, ICML 2015; Long et al. (CDAN), NeurIPS 2018.

    Args:
        width: features of a row.
        hidden: units of a hidden layer; 0: none, as published.
        warmup: calls, see above.
    """

    calls: Tensor

    def __init__(self, width: int, hidden: int = 0, warmup: float = 1000) -> None:
        super().__init__()
        self.linear: nn.Module = nn.Linear(width, 1)
        if hidden:
            self.linear = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.warmup = warmup
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._calls = 0  # the same number on the host: reading the buffer would stop a GPU's queue

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._calls = int(self.calls)

    def recount(self, calls: int) -> None:
        """As if there had been so many earlier calls."""
        self._calls = calls
        self.calls.fill_(calls)

    def forward(self, features_BK: Tensor) -> Tensor:
        """[B, K] → logits [B] of belonging to the first domain of the pair."""
        coefficient = 2 / (1 + math.exp(-self._calls / self.warmup)) - 1
        self._calls += 1
        self.calls.add_(1)
        return self.linear(_ReverseGradient.apply(features_BK, coefficient)).squeeze(-1)


class Discriminators(nn.ModuleList):
    """One discriminator for each pair of domains s < t, in the order (0,1), (0,2), …, (1,2), …; the target is last.

    Args:
        num_domains: sources and target.
        adversary: `m2can`: every pair of domains, from softmax(z) ⊗ f, linear. `cdan` and `dann`: all sources together and
            the target, from softmax(z) ⊗ f and from f alone. `mdan`: each source and the target, from f.
    """

    def __init__(
        self,
        num_domains: int,
        feature_width: int,
        num_classes: int,
        adversary: Adversary = "m2can",
    ) -> None:
        target = num_domains - 1
        self.merged, self.joint, self.target = adversary in ("dann", "cdan"), adversary in ("m2can", "cdan"), target
        # Where sources are merged, 0 stands for all of them.
        self.pairs = [(0, target)] if self.merged else list(combinations(range(num_domains), 2))
        if adversary == "mdan":
            self.pairs = [pair for pair in self.pairs if pair[1] == target]
        width = feature_width * (num_classes if self.joint else 1)
        hidden, warmup = (0, 1000) if adversary == "m2can" else (64, 100)
        super().__init__(PairDiscriminator(width, hidden, warmup) for _ in self.pairs)

    def view(self, outputs: Outputs) -> Tensor:
        """What the discriminators see of each sample, [D, B, K]; class index slower, softmax(z) held constant."""
        if not self.joint:
            return outputs.fused_DBK
        probs_DBC = torch.softmax(outputs.fused_logits_DBC, -1).detach()
        return (probs_DBC.unsqueeze(-1) * outputs.fused_DBK.unsqueeze(-2)).flatten(2)

    def counts(self) -> list[int]:
        """Earlier calls of each, without asking the device."""
        return [discriminator._calls for discriminator in self._each()]

    def recount(self, counts: list[int]) -> None:
        """Put back what `counts` gave."""
        for discriminator, calls in zip(self._each(), counts, strict=True):
            discriminator.recount(calls)

    def _each(self) -> list[PairDiscriminator]:
        return cast("list[PairDiscriminator]", list(self))
