"""What workers tell the driver while they run: a small actor takes messages, a thread of the driver reads them."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets_manifest.files import write_atomically
from trainers.journal.journal import EpochRecord, Journal

Message = tuple[str, Any]
TOLD_AFTER_S = 10.0  # that workers wait for resources
WAITS = "the run waits for resources: "  # `m2can jobs status` looks for a note that begins so


@ray.remote(num_cpus=0)
class Monitor:
    """Keeps messages, in the order of each worker, until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._beats: dict[int, tuple[int, int]] = {}
        self._stop = False
        self._checkpoints = 0
        self._over = False

    def post(self, kind: str, content: Any) -> None:
        self._checkpoints = 0 if kind == "running" else self._checkpoints + (kind == "drain")
        self._over |= kind in ("fatal", "memory")
        self._messages.append((kind, content))

    def is_over(self) -> bool:
        """Whether something happened that no restart can mend."""
        return self._over

    def beat(self, rank: int, epoch: int, step: int) -> tuple[bool, int]:
        """A worker is at this step; the answer is whether it is to stop, and how many checkpoints were asked for."""
        self._beats[rank] = (epoch, step)
        return self._stop, self._checkpoints

    def beats(self) -> dict[int, tuple[int, int]]:
        """Rank → the epoch and step where it was last heard of."""
        return self._beats

    def request_stop(self) -> None:
        self._stop = True

    def drain(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken


def start_monitor() -> Any:
    """A Monitor on the driver's own node: it must outlive the others."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Monitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Listener:
    """Takes messages and new epoch records about once a second and hands them on.

    Args:
        monitor: handle of a Monitor; None for a training in this process, which hands over its messages with `take`.
        journal: of the run.
        on_step: called with a step's message.
        on_epoch: called with each epoch's record, once.
        on_floor: called with the floor's metrics.
        stop: once it is set the workers are asked to stop.
        run_folder: local folder for what workers found: bad pictures, the samples of a step that was not finite.
        trace: file that gets every step's terms as a line of JSON, or None.
        lacking: what the cluster lacks for the workers, in words; None: nothing.
    """

    def __init__(
        self,
        monitor: Any,
        journal: Journal,
        *,
        on_step: Callable[[dict[str, Any]], None],
        on_epoch: Callable[[EpochRecord], None],
        stop: threading.Event,
        run_folder: Path,
        trace: Path | None,
        lacking: Callable[[], str | None] = lambda: None,
        on_floor: Callable[[dict[str, float]], None] = lambda metrics: None,
    ) -> None:
        self.monitor, self.journal = monitor, journal
        self.on_step, self.on_epoch, self.on_floor = on_step, on_epoch, on_floor
        self.run_folder, self.trace_file, self.lacking = run_folder, trace, lacking
        self.fatal: str | None = None
        self.out_of_memory: str | None = None  # which worker
        self.stopped: dict[str, int] | None = None
        self.measured: dict[str, Any] | None = None  # by a dry run
        self._stop_workers = stop
        self._asked_to_stop = False
        self._trace: TextIO | None = None
        self._traced: set[tuple[int, int]] = set()
        self._bad: set[tuple[str, str]] = set()
        self._notes: set[str] = set()
        self._seen = {record.epoch for record in journal.read()}
        self._lacked: str | None = None  # what was told
        self._waits_since: float | None = time.monotonic()  # for workers; None: they run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="m2can-listener")

    def __enter__(self) -> Listener:
        if self.trace_file is not None:
            self.trace_file.parent.mkdir(parents=True, exist_ok=True)
            self._trace = self.trace_file.open("w", encoding="utf-8")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take()
        if self._trace is not None:
            with contextlib.suppress(OSError):  # a full disk, which was told as a note
                self._trace.close()

    def ask_to_stop(self) -> None:
        """The workers leave a checkpoint between two steps and end."""
        self._stop_workers.set()

    @property
    def stops_without_workers(self) -> bool:
        """Whether the run is to stop while no worker trains, at the start or between two attempts: none has anything to save."""
        return self._stop_workers.is_set() and self._waits_since is not None

    @property
    def bad_pictures(self) -> int:
        return len(self._bad)

    def _listen(self) -> None:
        while not self._stop.wait(0.5):
            self._take()

    def _take(self) -> None:
        if self._stop_workers.is_set() and not self._asked_to_stop:
            self._asked_to_stop = True
            self.monitor.request_stop.remote()
        try:
            messages = ray.get(self.monitor.drain.remote(), timeout=30)
        except RayError:
            messages = []  # the cluster is on its way out; the journal still speaks
        for kind, content in messages:
            self.take(kind, content)
        self.take_records()
        self._tell_waiting()

    def take(self, kind: str, content: Any) -> None:
        """Hand a message on."""
        try:
            getattr(self, f"_take_{kind}")(content)
        except OSError as error:  # a list of bad pictures or a trace on a full disk; the run goes on
            self._take_note(f"could not be written: {error}")

    def take_records(self) -> None:
        """Hand on what is new in the journal."""
        for record in self.journal.read(known=self._seen):
            self._seen.add(record.epoch)
            self.on_epoch(record)

    def _tell_waiting(self) -> None:
        """Once for each time that workers are started: what the cluster lacks for them, and who has it."""
        if self._waits_since is not None and time.monotonic() - self._waits_since > TOLD_AFTER_S:
            self._waits_since = time.monotonic()
            words = None
            with contextlib.suppress(RayError, OSError, RuntimeError):  # the cluster is on its way out
                words = self.lacking()
            if words and words != self._lacked:
                self._lacked = words
                print(f"note: {WAITS}{words}", file=sys.stderr, flush=True)

    def _take_floor(self, content: dict[str, float]) -> None:
        self.on_floor(content)

    def _take_running(self, _: None) -> None:
        self._waits_since, self._lacked = None, None

    def _take_step(self, content: dict[str, Any]) -> None:
        self.on_step(content)
        # A restarted worker repeats steps since its checkpoint; they are the same.
        number = (content["epoch"], content["step"])
        if self._trace is not None and number not in self._traced:
            self._traced.add(number)
            line = {"epoch": content["epoch"], "step": content["step"], **content["passes"]}
            print(json.dumps(line), file=self._trace, flush=True)

    def _take_bad(self, content: list[tuple[str, str]]) -> None:
        new = [(identity, problem) for identity, problem in content if (identity, problem) not in self._bad]
        if new:
            self._bad.update(new)
            with (self.run_folder / "bad_pictures.jsonl").open("a", encoding="utf-8") as file:
                for identity, problem in new:
                    print(json.dumps({"id": identity, "problem": problem}, ensure_ascii=False), file=file)

    def _take_nonfinite(self, content: dict[str, Any]) -> None:
        file = self.run_folder / f"nonfinite-epoch{content['epoch']}-step{content['step']}-rank{content['rank']}.json"
        write_atomically(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _take_note(self, content: str) -> None:
        if content not in self._notes:  # every rank says it
            self._notes.add(content)
            print(f"note: {content}", file=sys.stderr, flush=True)

    def _take_restart(self, content: tuple[str, str]) -> None:
        why, attempt = content
        epoch = max(self._seen, default=0) + 1
        print(f"note: {why}, workers restart from epoch {epoch}{attempt}", file=sys.stderr, flush=True)
        self._waits_since = time.monotonic()

    def _take_drain(self, content: str) -> None:
        print(f"note: {content}", file=sys.stderr, flush=True)

    def _take_stopped(self, content: dict[str, int]) -> None:
        self.stopped = content

    def where(self) -> str:
        """Where each rank was last heard of; a rank that lags names itself."""
        try:
            beats = ray.get(self.monitor.beats.remote(), timeout=30)
        except RayError:
            return "where the workers were is not known"
        if not beats:
            return "no worker had finished a step"
        last = max(beats.values())
        told = [f"rank {rank} at epoch {epoch} step {step}" for rank, (epoch, step) in sorted(beats.items())]
        late = [str(rank) for rank, place in sorted(beats.items()) if place < last]
        return ", ".join(told) + (f"; behind: rank {', '.join(late)}" if late else "")

    def _take_measured(self, content: dict[str, Any]) -> None:
        self.measured = content

    def _take_memory(self, content: str) -> None:
        self.out_of_memory = self.out_of_memory or content

    def _take_fatal(self, content: str) -> None:
        self.fatal = self.fatal or content
