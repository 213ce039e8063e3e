"""The loss scale of fp16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LossScale:
    """The factor that keeps small fp16 gradients from vanishing.

    torch's GradScaler unscales once an optimizer and step; a sharpness-aware step needs it twice: the perturbation is
    along the true gradient. A step that overflows is repeated with half the factor, so no rows are lost.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740.

    value: the factor. steady: steps since it last changed; after 2000 it doubles.
    """

    value: float = 2.0**16
    steady: int = 0

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> None:
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def lower(self) -> bool:
        """Half the factor; False if it is 1 already: then it is not the scale that overflows."""
        if self.value <= 1:
            return False
        self.value, self.steady = self.value / 2, 0
        return True

    def step_succeeded(self) -> None:
        self.steady += 1
        if self.steady >= 2000:
            self.value, self.steady = min(self.value * 2, 2.0**24), 0


class NoLossScale(LossScale):
    """Of the other precisions: the factor 1, which stays."""

    def __init__(self) -> None:
        super().__init__(value=1.0)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Nothing to do."""

    def step_succeeded(self) -> None:
        """Nothing to do."""
