"""What the commands print: progress while a run goes on, tables at its end, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trainers.m2can.losses import TERMS
from trainers.training_run import RunObserver
from trainers.validators.checked import CheckedAccuracy
from trainers.validators.expected import ExpectedAccuracy

if TYPE_CHECKING:
    from trainers.journal.journal import EpochRecord
    from trainers.preflight.preparation import Prepared

_PLAIN_EVERY_S = 10.0
_SPEED_OVER_S = 600.0  # long enough to hold several of the slowest steps


def print_json(content: Any) -> None:
    """One JSON object on one line of standard output; dataclasses and paths may be in it."""
    print(json.dumps(to_jsonable_python(content), ensure_ascii=False), flush=True)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


class RunProgress(RunObserver):
    """Progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

    Args:
        as_json: whether epochs go to standard output as JSON lines.
    """

    def __init__(self, as_json: bool) -> None:
        self.epochs, self.as_json = 0, as_json
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
        # Off a terminal it draws nothing, but still measures the speed.
        self._bar = Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            get_time=lambda: time.monotonic(),
            speed_estimate_period=_SPEED_OVER_S,
        )
        self._task = self._bar.add_task("starting workers", total=1, detail="")
        self._printed = 0.0
        self.run_name = ""

    def on_start(self, prepared: Prepared) -> None:
        from trainers.recipe.base import decided

        self.run_name = prepared.name
        self.epochs = decided(prepared.recipe.train.epochs)
        for note in prepared.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"run {prepared.name}: {' + '.join(prepared.card.sources)} → {prepared.card.target}", file=sys.stderr)

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, content: dict[str, Any]) -> None:
        epoch, step, steps = content["epoch"], content["step"], content["steps"]
        name = f"epoch {epoch}/{self.epochs}"
        done, total = (epoch - 1) * steps + step, self.epochs * steps
        self._bar.update(self._task, description=name, total=total, completed=done)
        detail = self._detail(content)
        self._bar.update(self._task, detail=detail)
        if self._bar.disable and time.monotonic() - self._printed > _PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(name, detail, file=sys.stderr, flush=True)

    def _detail(self, content: dict[str, Any]) -> str:
        terms = content["passes"]["second"]
        names = [*(term.name for term in TERMS), "total"]
        losses = "  ".join(f"{name} {terms[name]:.3f}" for name in names if name in terms)
        parts = [f"step {content['step']}/{content['steps']}", losses]
        (task,) = self._bar.tasks
        if task.speed and task.time_remaining is not None:  # steps a second, seconds
            parts.insert(1, f"{task.speed * content['samples']:.0f} samples/s")
            parts.append(f"{_duration(task.time_remaining)} left")
        return "  ".join(parts)

    def on_floor(self, metrics: dict[str, float]) -> None:
        if self.as_json:
            print_json({"event": "floor", "metrics": metrics})
        for line in (zero_shot_line(metrics), floor_line(metrics)):
            if line is not None:
                self._bar.console.print(line, highlight=False, soft_wrap=self._bar.disable)

    def on_epoch(self, record: EpochRecord) -> None:
        if self.as_json:
            content = {"event": "epoch", "epoch": record.epoch, "step": record.step, "time": record.time}
            print_json(content | {"metrics": record.metrics})
        line = epoch_line(record, self.epochs)
        self._bar.console.print(line, highlight=False, soft_wrap=self._bar.disable)


def floor_line(metrics: Mapping[str, float]) -> str:
    """What is known before the first step: accuracies of the linear classifier on untrained encoders.

    Its score would say nothing here: it is compared with an epoch's only when both are as sure of the sources.
    """
    parts = ["floor"]
    if "source/val/accuracy" in metrics:
        parts.append(f"sources {percent(metrics['source/val/accuracy'])}")
    parts += _of_target(metrics)
    return "  ".join([*parts, "without training", f"{metrics.get('time/floor_s', 0.0):.1f} s"])


def zero_shot_line(metrics: Mapping[str, float]) -> str | None:
    """Accuracies of the names of the classes in the dual encoder's eyes; None where there is none."""
    of_sources, of_target = (metrics.get(f"zero_shot/{part}/val/accuracy") for part in ("source", "target"))
    parts = [] if of_sources is None else [f"sources {percent(of_sources)}"]
    parts += [] if of_target is None else [f"target {percent(of_target)} (its labels are not used)"]
    return "  ".join(["zero-shot", *parts, "by class names, without training"]) if parts else None


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """An epoch's loss, accuracies and speed in one line."""
    m = record.metrics
    parts = [f"epoch {record.epoch}/{epochs}", f"loss {m.get('loss/total', float('nan')):.3f}"]
    if "source/val/accuracy" in m:
        parts.append(f"sources {percent(m['source/val/accuracy'])}")
    if "uacr/kept" in m:
        parts.append(f"pseudo labels {m['uacr/kept']:.0f}")
    parts.append(f"selection {m.get('selection/score', float('nan')):.3f}")
    parts += _of_target(m)
    seconds = m.get("time/train_s", 0.0) + m.get("time/score_s", 0.0)
    return "  ".join([*parts, f"{m.get('speed/samples_per_s', 0):.0f} samples/s", f"{seconds:.1f} s"])


def _of_target(metrics: Mapping[str, float]) -> list[str]:
    """Expected accuracy, that on held-out labels, that on the validation records."""
    parts = []
    if (expected := ExpectedAccuracy.from_metrics(metrics)) is not None:
        parts.append(f"target {expected}")
    if (checked := CheckedAccuracy.from_metrics(metrics)) is not None:
        parts.append(f"target {checked}")
    if "target/val/accuracy" in metrics:
        parts.append(f"target {percent(metrics['target/val/accuracy'])} (its labels are not used)")
    return parts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"
