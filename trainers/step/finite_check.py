"""Whether a step was finite: what the device says of it, and what the host does then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

Passes = dict[str, dict[str, Tensor]]  # by pass, `first` only with SAM: terms, `total`, `grad_norm`


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient is not finite. Raised on every worker; no optimizer moved by it. number: of the step."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


def not_finite(passes: Passes) -> Tensor:
    """On the device, bool. The last pass is enough: a first one that is not finite spoils it."""
    return torch.stack([~_is_finite(terms) for terms in passes.values()]).any()


def error_of(number: int, passes: Passes) -> NonFiniteLoss:
    """Names the terms of the first pass that is not finite."""
    terms = next(terms for terms in passes.values() if not _is_finite(terms))
    named = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
    return NonFiniteLoss(f"step {number}: loss or gradient is not finite ({named})", number)


def _is_finite(terms: dict[str, Tensor]) -> Tensor:
    return torch.isfinite(terms["total"]) & torch.isfinite(terms["grad_norm"])


def can_skip(optimizer: Optimizer) -> bool:
    """Whether its step leaves weights and state as they are where a tensor on the device says so: fused Adam and AdamW."""
    return isinstance(optimizer, Adam) and all(group.get("fused") for group in optimizer.param_groups)


def step_unless(optimizer: Optimizer, stopped: Tensor) -> None:
    """A step of an optimizer that can skip it, as torch.amp.GradScaler takes it.

    Args:
        stopped: bool, on the device.
    """
    optimizer.found_inf = stopped.float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Unchecked:
    """A step whose answer the host has not read: the device works on it, or has not begun.

    number, passes: of the step. calls: of the discriminators before it. rates: of the optimizers' groups before it.
    stopped: on the device: this step or one before it was not finite, so nothing moves any more.
    answer: the same, on its way to the host. arrived: recorded behind the answer; None on a CPU.
    """

    number: int
    passes: Passes
    calls: list[int]
    rates: list[list[float]]
    stopped: Tensor
    answer: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, number: int, passes: Passes, calls: list[int], rates: list[list[float]], stopped: Tensor) -> Unchecked:
        """Send the answer."""
        if not stopped.is_cuda:
            return cls(number, passes, calls, rates, stopped, stopped, None)
        answer = torch.empty_like(stopped, device="cpu", pin_memory=True).copy_(stopped, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(number, passes, calls, rates, stopped, answer, arrived)

    def was_finite(self) -> bool:
        """Waits until the device has done the step."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return not self.answer
