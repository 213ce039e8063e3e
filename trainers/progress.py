"""What workers tell the driver while they run: a small actor takes messages, a thread of the driver reads them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.exceptions import RayError

from trainers.journal import EpochRecord, Journal

Message = tuple[str, Any]


@ray.remote(num_cpus=0, max_concurrency=4)
class Monitor:
    """Keeps messages until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, kind: str, content: Any) -> None:
        self._messages.append((kind, content))

    def drain(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken


class Listener:
    """Takes messages and new epoch records about once a second and hands them on.

    Args:
        monitor: handle of a Monitor.
        journal: of the run.
        on_step: called with a step's message.
        on_epoch: called with each epoch's record, once.
        run_folder: local folder for what workers found: bad pictures, the samples of a step that was not finite.
        trace: file that gets every step's terms as a line of JSON, or None.
    """

    def __init__(
        self,
        monitor: Any,
        journal: Journal,
        *,
        on_step: Callable[[dict[str, Any]], None],
        on_epoch: Callable[[EpochRecord], None],
        run_folder: Path,
        trace: Path | None,
    ) -> None:
        self.monitor, self.journal = monitor, journal
        self.on_step, self.on_epoch = on_step, on_epoch
        self.run_folder, self.trace_file = run_folder, trace
        self.fatal: str | None = None
        self._trace: TextIO | None = None
        self._traced: set[tuple[int, int]] = set()
        self._bad: set[tuple[str, str]] = set()
        self._seen = {record.epoch for record in journal.read()}
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
            self._trace.close()

    @property
    def bad_pictures(self) -> int:
        return len(self._bad)

    def _listen(self) -> None:
        while not self._stop.wait(0.5):
            self._take()

    def _take(self) -> None:
        try:
            messages = ray.get(self.monitor.drain.remote(), timeout=30)
        except RayError:
            messages = []  # the cluster is on its way out; the journal still speaks
        for kind, content in messages:
            getattr(self, f"_take_{kind}")(content)
        for record in self.journal.read():
            if record.epoch not in self._seen:
                self._seen.add(record.epoch)
                self.on_epoch(record)

    def _take_step(self, content: dict[str, Any]) -> None:
        # A restarted worker repeats steps since its checkpoint; they are the same.
        number = (content["epoch"], content["step"])
        if self._trace is not None and number not in self._traced:
            self._traced.add(number)
            line = {"epoch": content["epoch"], "step": content["step"], **content["passes"]}
            print(json.dumps(line), file=self._trace, flush=True)
        self.on_step(content)

    def _take_bad(self, content: list[tuple[str, str]]) -> None:
        new = [(identity, problem) for identity, problem in content if (identity, problem) not in self._bad]
        if new:
            self._bad.update(new)
            with (self.run_folder / "bad_pictures.jsonl").open("a", encoding="utf-8") as file:
                for identity, problem in new:
                    print(json.dumps({"id": identity, "problem": problem}, ensure_ascii=False), file=file)

    def _take_nonfinite(self, content: dict[str, Any]) -> None:
        file = self.run_folder / f"nonfinite-epoch{content['epoch']}-step{content['step']}-rank{content['rank']}.json"
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _take_fatal(self, content: str) -> None:
        self.fatal = self.fatal or content
