"""Callbacks of the training loop."""

from __future__ import annotations

from typing import Any

from datasets_manifest.stream.plan import EpochPlan, StepSlice
from trainers.step.finite_check import Passes


class Observer:
    """Called by a Loop; does nothing. The base of observers that do something."""

    def step(self, slice_: StepSlice, plan: EpochPlan, passes: Passes) -> None: ...

    def between_steps(self, loop: Any) -> None:
        """After a step that is not an epoch's last: `save` of the Loop writes a checkpoint from which this very step
        follows."""

    def bad_pictures(self, bad: list[tuple[int, str]]) -> None: ...

    def not_finite(self, slice_: StepSlice) -> None: ...

    def compiled(self, seconds: float) -> None:
        """After the first step, if `train.compile` is set: how long it took."""
