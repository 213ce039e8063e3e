"""Time two or more sides in turns, in one process or each in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from typing import Any

import torch

Runs = Mapping[str, Callable[[], Any]]


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Duration of one call, on a GPU from CUDA events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def lap_seconds(runs: Iterable[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds from the end of the previous run to the end of each one. On a GPU the host does not wait between runs, as a
    training loop does not."""
    if device.type != "cuda":
        return [seconds_of(run, device) for run in runs]
    torch.cuda.synchronize(device)
    marks = [_mark()]
    for run in runs:
        run()
        marks.append(_mark())
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each side; the sides take turns. Each ran once before."""
    return in_turns({name: lambda run=run: seconds_of(run, device) for name, run in sides.items()}, repeats)  # type: ignore[misc]


def in_turns(clocks: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each clock's readings; the clocks take turns."""
    found: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(repeats):
        for name, clock in clocks.items():
            found[name].append(clock())
    return {name: statistics.median(times) for name, times in found.items()}


class SideProcess:
    """One side in a process of its own, as its users would run it: with its own memory, threads and settings.

    Args:
        make: a function of a module; `make(*arguments)` is entered in the process and gives what can be run, by name.

    `first` holds what each of them returned when it ran for the first time, which is not timed.
    """

    def __init__(self, make: Callable[..., AbstractContextManager[Runs]], *arguments: Any) -> None:
        self.make, self.arguments = make, arguments

    def __enter__(self) -> SideProcess:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.make, self.arguments))
        self._process.start()
        theirs.close()  # else recv would not end when the process does
        self.first: dict[str, Any] = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join()

    def seconds(self, name: str) -> float:
        """Of one more run."""
        self._connection.send(name)
        return self._answer()

    def _answer(self) -> Any:
        """Raises RuntimeError: the process ended; it printed why."""
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of `{self.make.__name__}` ended with code {self._process.exitcode}"
            ) from None


def _serve(connection: Any, make: Callable[..., AbstractContextManager[Runs]], arguments: tuple[Any, ...]) -> None:
    """Run what is asked for until the other end is closed."""
    with make(*arguments) as runs:
        connection.send({name: run() for name, run in runs.items()})
        while True:
            try:
                name = connection.recv()
            except EOFError:
                return
            connection.send(seconds_of(runs[name], device_here()))


def compare(ours: SideProcess, theirs: SideProcess, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of every run of the two, by name, and what each returned first. Names must differ."""
    with ExitStack() as stack:
        sides = [stack.enter_context(side) for side in (ours, theirs)]
        clocks = {name: lambda side=side, name=name: side.seconds(name) for side in sides for name in side.first}
        return in_turns(clocks, repeats), {name: value for side in sides for name, value in side.first.items()}
