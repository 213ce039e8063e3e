"""What the commands print: progress while a run goes on, tables at its end, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trainers.m2can.losses import TERMS
from trainers.training_run import RunObserver

if TYPE_CHECKING:
    from trainers.cluster.preparation import Prepared
    from trainers.tracking.journal import EpochRecord

_PLAIN_EVERY_S = 10.0


def print_json(content: Any) -> None:
    """One JSON object on one line of standard output."""
    print(json.dumps(content, ensure_ascii=False), flush=True)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


class RunProgress(RunObserver):
    """Progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

    Args:
        epochs: of the whole run.
        as_json: whether epochs go to standard output as JSON lines.
    """

    def __init__(self, epochs: int, as_json: bool) -> None:
        self.epochs, self.as_json = epochs, as_json
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=20)  # time, steps and samples done since the start
        self._done_samples = 0
        self._last = (0, 0)
        self._printed = 0.0

    def on_start(self, prepared: Prepared) -> None:
        for note in prepared.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"run {prepared.name}: {' + '.join(prepared.card.sources)} → {prepared.card.target}", file=sys.stderr)

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("starting workers", total=1, detail="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_step(self, content: dict[str, Any]) -> None:
        epoch, step, steps = content["epoch"], content["step"], content["steps"]
        done = (epoch - 1) * steps + step
        advanced = done - ((self._last[0] - 1) * steps + self._last[1] if self._last[0] else done - 1)
        self._last = (epoch, step)
        self._done_samples += max(advanced, 0) * content["samples"]
        self._recent.append((time.monotonic(), done, self._done_samples))
        detail = self._detail(content, done, self.epochs * steps)
        if self._bar is not None:
            self._bar.update(
                self._task, description=f"epoch {epoch}/{self.epochs}", total=steps, completed=step, detail=detail
            )
        elif time.monotonic() - self._printed > _PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(f"epoch {epoch}/{self.epochs} {detail}", file=sys.stderr, flush=True)

    def _detail(self, content: dict[str, Any], done: int, total: int) -> str:
        terms = content["passes"]["second"]
        names = [*(term.name for term in TERMS), "total"]
        losses = "  ".join(f"{name} {terms[name]:.3f}" for name in names if name in terms)
        (t0, done0, samples0), (t1, done1, samples1) = self._recent[0], self._recent[-1]
        if t1 <= t0 or done1 <= done0:
            return f"step {content['step']}/{content['steps']}  {losses}"
        left = (total - done) * (t1 - t0) / (done1 - done0)
        return (
            f"step {content['step']}/{content['steps']}  {(samples1 - samples0) / (t1 - t0):.0f} samples/s  {losses}  "
            f"{_duration(left)} left"
        )

    def on_epoch(self, record: EpochRecord) -> None:
        if self.as_json:
            content = {"event": "epoch", "epoch": record.epoch, "step": record.step, "time": record.time}
            print_json(content | {"metrics": record.metrics})
        line = epoch_line(record, self.epochs)
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """What an epoch came to, in one line."""
    m = record.metrics
    parts = [f"epoch {record.epoch}/{epochs}", f"loss {m.get('loss/total', float('nan')):.3f}"]
    if "source/val/accuracy" in m:
        parts.append(f"sources {percent(m['source/val/accuracy'])}")
    if "uacr/kept" in m:
        parts.append(f"pseudo labels {m['uacr/kept']:.0f}")
    parts.append(f"selection {m.get('selection/score', float('nan')):.3f}")
    if "target/val/accuracy" in m:
        parts.append(f"target {percent(m['target/val/accuracy'])} (its labels are not used)")
    seconds = m.get("time/train_s", 0.0) + m.get("time/score_s", 0.0)
    return "  ".join([*parts, f"{m.get('speed/samples_per_s', 0):.0f} samples/s", f"{seconds:.1f} s"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"
