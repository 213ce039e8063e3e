"""CDAFA: cross-domain adversarial feature alignment, one conditional discriminator for each pair of domains."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.m2can.batch import Batch, Outputs


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

    The reversal's coefficient is 2/(1+exp(−k/1000)) − 1 with k = number of earlier calls. k is a buffer, so that it is
    saved with the weights.

    Source: Ganin and Lempitsky, ICML 2015; Long et al. (CDAN), NeurIPS 2018.
    """

    calls: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
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
        coefficient = 2 / (1 + math.exp(-self._calls / 1000)) - 1
        self._calls += 1
        self.calls.add_(1)
        return self.linear(_ReverseGradient.apply(features_BK, coefficient)).squeeze(-1)


class Discriminators(nn.ModuleList):
    """One discriminator for each pair of domains s < t, in the order (0,1), (0,2), …, (1,2), …; the target is last."""

    def __init__(self, num_domains: int, feature_width: int, num_classes: int) -> None:
        self.pairs = list(combinations(range(num_domains), 2))
        super().__init__(PairDiscriminator(feature_width * num_classes) for _ in self.pairs)

    def counts(self) -> list[int]:
        """Earlier calls of each, without asking the device."""
        return [discriminator._calls for discriminator in self._each()]

    def recount(self, counts: list[int]) -> None:
        """Put back what `counts` gave."""
        for discriminator, calls in zip(self._each(), counts):
            discriminator.recount(calls)

    def _each(self) -> list[PairDiscriminator]:
        return cast("list[PairDiscriminator]", list(self))


def adversarial(outputs: Outputs, batch: Batch, discriminators: Discriminators, smoothing: float) -> Tensor:
    """Mean over the pairs that take part of the pair's binary cross-entropy; domain a wants 1−ε, domain b wants ε.

    The discriminators see flatten(softmax(z) ⊗ f) (class index slower), softmax(z) held constant, of weak × weak.

    Source: Zhao et al. 2025; the smoothed task term of Rangwani et al. (SDAT), ICML 2022.

    Args:
        smoothing: ε, 0 to 1.

    Returns:
        scalar, this worker's share; zero when fewer than two domains take part.
    """
    probs_DBC = torch.softmax(outputs.fused_logits_DBC, -1).detach()
    joint_DBK = (probs_DBC.unsqueeze(-1) * outputs.fused_DBK.unsqueeze(-2)).flatten(2)
    present = [(j, pair) for j, pair in enumerate(discriminators.pairs) if max(pair) < batch.num_domains]
    loss = joint_DBK.new_zeros(())
    for j, (a, b) in present:
        logits_B = discriminators[j](torch.cat([joint_DBK[a], joint_DBK[b]]))
        wanted_B = torch.full_like(logits_B, smoothing)
        wanted_B[: batch.size] = 1 - smoothing
        loss = loss + F.binary_cross_entropy_with_logits(logits_B, wanted_B, reduction="sum")
    return loss / (2 * batch.global_batch * max(len(present), 1))
