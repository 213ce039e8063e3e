"""An epoch's time, with events whose times are given in place of a GPU's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trainers.step.step_clock import StepClock


class Event:
    """Recorded at the next of the given milliseconds."""

    times = iter(())

    def record(self) -> None:
        self.at = next(Event.times)

    def synchronize(self) -> None:
        assert hasattr(self, "at")

    def elapsed_time(self, later: Any) -> float:
        return float(later.at - self.at)


def clock_of(times: list[int], waits: list[float]) -> StepClock:
    Event.times = iter(times)
    clock = StepClock(torch.device("cuda"), Event)  # type: ignore[arg-type]
    for waited in waits:
        with clock.step(waited):
            pass
    assert next(Event.times, None) is None
    return clock


def test_waiting_counts_while_the_gpu_has_nothing_to_do() -> None:
    # Steps of 100 ms; before the second one the GPU is idle for 50 ms, before the third one for 300 ms.
    clock = clock_of([0, 100, 150, 250, 550, 650], [2.0, 0.2, 0.2])
    assert clock.waited() == pytest.approx(2.0 + 0.05 + 0.2)
    assert clock.gpu_busy() == pytest.approx(0.3)


def test_without_a_gpu_all_waiting_counts() -> None:
    clock = StepClock(torch.device("cpu"), lambda: next(itertools.chain()))  # makes no event
    for waited in (0.5, 0.25):
        with clock.step(waited):
            pass
    assert clock.waited() == 0.75
    assert clock.gpu_busy() is None


def test_an_epoch_without_steps() -> None:
    clock = StepClock(torch.device("cuda"))
    assert (clock.waited(), clock.gpu_busy()) == (0.0, None)
