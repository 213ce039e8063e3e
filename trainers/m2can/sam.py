"""SAM: sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SharpnessAwareStep:
    """w ← w + ρ·g/(‖g‖₂ + 1e-12) over all parameters that have gradients; later back to exactly w.

    Source: Foret et al., "Sharpness-Aware Minimization", ICLR 2021, arXiv:2010.01412.

    Args:
        parameters: what is perturbed. Their gradients must be the global ones, equal on every worker.
        rho: ρ > 0.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rho: float) -> None:
        self.parameters = list(parameters)
        self.rho = rho
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def perturb(self, grad_norm: Tensor) -> None:
        """Move by ρ along the gradients, given their common norm. Afterwards the gradients hold the perturbation."""
        touched: list[Tensor] = [p for p in self.parameters if p.grad is not None]
        if not touched:
            return
        before = [torch.empty_like(p) for p in touched]
        torch._foreach_copy_(before, touched)
        self._before = list(zip(touched, before, strict=True))
        scale = self.rho / (grad_norm + 1e-12)
        gradients: list[Tensor] = [p.grad for p in touched]  # type: ignore[misc]
        torch._foreach_mul_(gradients, scale)
        torch._foreach_add_(touched, gradients)

    @torch.no_grad()
    def restore(self) -> None:
        """Copied back, not subtracted: w comes back to the last bit."""
        if self._before:
            parameters, before = zip(*self._before, strict=True)
            torch._foreach_copy_(list(parameters), list(before))
        self._before = []


def global_norm(gradients: list[Tensor]) -> Tensor:
    """‖g‖₂ over all tensors, on the device (no synchronisation); zero for an empty list."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
