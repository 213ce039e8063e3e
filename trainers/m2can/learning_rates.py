"""Learning-rate schedules: a pure function of the step, so that a resumed run needs nothing but its step number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer

Schedule = Callable[[float, int], float]


def poly(total_steps: int, power: float, lowest: float) -> Schedule:
    """lr = max(lr₀·(1 − k/K)^power, lowest), set after step k = 0, 1, …: the first two steps both use lr₀."""
    return lambda base, k: max(base * max(1 - k / total_steps, 0.0) ** power, lowest)


def cosine(total_steps: int, target_lr: float) -> Schedule:
    """From lr₀ along half a cosine to `target_lr`.

    Source: Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983.
    """
    return lambda base, k: target_lr + (base - target_lr) * (1 + math.cos(math.pi * min(k / total_steps, 1))) / 2


def multistep(milestones: Sequence[int]) -> Schedule:
    """A tenth for each milestone (a step number) passed."""
    return lambda base, k: base * 0.1 ** sum(k >= milestone for milestone in milestones)


def set_learning_rates(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """After step `step`. The base rate of a group is its `base_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = schedule(group["base_lr"], step)
