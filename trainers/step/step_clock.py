"""Where an epoch's time goes: steps, waiting for data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch


class StepClock:
    """Times the steps of an epoch.

    On a GPU events around the steps tell what the GPU did, without waiting for it: a host that waits for data while the
    GPU still works on the step before costs nothing.

    Args:
        device: of the steps.
        make_event: makes a torch.cuda.Event that keeps the time.
    """

    def __init__(
        self,
        device: torch.device,
        make_event: Callable[[], torch.cuda.Event] = lambda: torch.cuda.Event(enable_timing=True),
    ) -> None:
        self._make_event = make_event if device.type == "cuda" else None
        self._waits: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # of each step: before, after

    @contextlib.contextmanager
    def step(self, waited: float) -> Iterator[None]:
        """Around a step.

        Args:
            waited: seconds that the host waited for its batch.
        """
        self._waits.append(waited)
        if self._make_event is None:
            yield
            return
        before, after = self._make_event(), self._make_event()
        before.record()
        yield
        after.record()
        self._events.append((before, after))

    def waited(self) -> float:
        """Seconds in which the device had nothing to do because of data."""
        if not self._events:
            return sum(self._waits)
        self._events[-1][1].synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        idle = [after.elapsed_time(before) / 1e3 for (_, after), (before, _) in pairs]
        return self._waits[0] + sum(map(min, self._waits[1:], idle))

    def gpu_busy(self) -> float | None:
        """Seconds from the first to the last of each step's work on the GPU, summed; None without a GPU."""
        if not self._events:
            return None
        self._events[-1][1].synchronize()
        return sum(before.elapsed_time(after) for before, after in self._events) / 1e3
