"""What a sweep shows on standard error while it goes on: a live table on a terminal, a line for each report elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tuning.search import METRIC, planned_trials
from tuning.sweep import SweepPlan

_SHOWN_ROWS = 20
_FRAME = 8  # lines of title, head, borders and caption
_live: Live | None = None  # not in the callback, which Tune pickles


@contextmanager
def live_table() -> Iterator[None]:
    """While it is entered, `Progress` draws a table in place of lines, if standard error is a terminal."""
    global _live
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with Live(console=console, auto_refresh=False) as _live:
        try:
            yield
        finally:
            _live = None


class Progress(tune.Callback):
    """Each trial's epoch, score and searched values; the best so far; how many trials have ended and how long the rest takes."""

    keys: tuple[str, ...] = ()
    count, epochs = 0, 0

    def __init__(self, plan: SweepPlan, epochs: int) -> None:
        sweep = plan.sweep
        self.keys = ("variant", "seed") if sweep.is_comparison else tuple(sweep.space)
        self.count, self.epochs = planned_trials(plan), epochs
        self.began: float | None = None
        self.before = 0.0
        # By trial id. Tune updates a trial's own last result after it has told the callbacks.
        self.reports: dict[str, dict[str, Any]] = {}

    def setup(self, *_: Any, **__: Any) -> None:
        """A sweep that goes on has the callback of the command before it."""
        self.began, self.before, self.reports = None, 0.0, {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trials)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.reports[trial.trial_id] = {name: result.get(name) for name in ("epoch", METRIC, "finished")}
        epoch = "" if result.get("finished") else f"epoch {result['epoch']}/{self.epochs}  "
        self._tell(
            trials, trial, f"{epoch}score {result[METRIC]:.4f}" if epoch else f"ended, score {result[METRIC]:.4f}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trials, trial, "failed")

    def _tell(self, trials: list[Any], trial: Any = None, said: str = "") -> None:
        if self.began is None:
            self.began, self.before = time.monotonic(), self._done(trials)
        if _live is not None:
            most = max(3, min(_SHOWN_ROWS, _live.console.height - _FRAME))  # what is taller is cut off
            _live.update(self.table(trials, most), refresh=True)
        elif trial is not None:
            number = trials.index(trial) + 1
            line = f"trial {number} of {self.count}  {said}  {self.summary(trials)}  {self.values(trial.config)}"
            print(line, file=sys.stderr, flush=True)

    def values(self, config: Mapping[str, Any]) -> str:
        """The searched values of a trial in one line."""
        return settings({key: config[key] for key in self.keys if key in config})

    def summary(self, trials: list[Any]) -> str:
        """The best so far, how many have ended, how long the rest takes."""
        ended = sum(map(self._has_ended, trials))
        parts = [f"{ended} of {self.count} ended"]
        if (best := self.best_so_far(trials)) is not None:
            parts.insert(0, f"best {best[0]:.4f} (trial {best[1]})")
        if (left := self.seconds_left(trials)) is not None:
            minutes, seconds = divmod(round(left), 60)
            parts.append(
                f"{minutes // 60} h {minutes % 60:02d} min left"
                if minutes >= 60
                else f"{minutes}:{seconds:02d} min left"
            )
        return ", ".join(parts)

    def seconds_left(self, trials: list[Any]) -> float | None:
        """By the epochs done since this command began; None before the first."""
        done = self._done(trials)
        if self.began is None or done <= self.before:
            return None
        return (time.monotonic() - self.began) * (self.count - done) / (done - self.before)

    def _done(self, trials: list[Any]) -> float:
        """Trials' worth of work: an ended trial counts one, one under way the part of its epochs that it has done."""
        parts = (1.0 if self._has_ended(t) else self._last(t, "epoch", 0) / max(1, self.epochs) for t in trials)
        return float(sum(min(1.0, part) for part in parts))

    def table(self, trials: list[Any], most: int = _SHOWN_ROWS) -> Table:
        """The trials under way and the best of the others, at most `most`, by number."""
        best = self.best_so_far(trials)
        table = Table(title=self.summary(trials), title_justify="left")
        for heading in ("trial", "status", "epoch", "score", *self.keys):
            table.add_column(heading, justify="right" if heading in ("trial", "epoch", "score") else "left")
        numbered = list(enumerate(trials, start=1))
        ranked = sorted(numbered, key=lambda pair: (pair[1].is_finished(), -self._score(pair[1])))
        for number, trial in sorted(ranked[:most], key=lambda pair: pair[0]):
            score = self._score(trial)
            cells = [f"{number}", str(trial.status).lower(), f"{self._last(trial, 'epoch', '–')}"]
            cells += [f"{score:.4f}" if math.isfinite(score) else "–"]
            cells += [
                settings({key: trial.config[key]}, named=False) if key in trial.config else "–" for key in self.keys
            ]
            table.add_row(*cells, style="bold" if best is not None and number == best[1] else None)
        if len(numbered) > most:
            table.caption = f"and {len(numbered) - most} more with lower scores"
        return table

    def best_so_far(self, trials: list[Any]) -> tuple[float, int] | None:
        """The highest score that a trial reported last, and the trial's number, from 1."""
        scores = [(self._score(trial), number) for number, trial in enumerate(trials, start=1)]
        known = [pair for pair in scores if math.isfinite(pair[0])]
        return max(known, default=None, key=lambda pair: (pair[0], -pair[1]))

    def _has_ended(self, trial: Any) -> bool:
        """Whether it is over, or its last report says so: Tune ends it a moment later."""
        return bool(trial.is_finished() or self._last(trial, "finished", False))

    def _score(self, trial: Any) -> float:
        score = self._last(trial, METRIC, None)
        return -math.inf if score is None or math.isnan(score) else float(score)

    def _last(self, trial: Any, name: str, absent: Any) -> Any:
        found = self.reports.get(trial.trial_id, trial.last_result or {}).get(name)
        return absent if found is None else found


def settings(config: Mapping[str, Any], *, named: bool = True) -> str:
    """Values in one line, with their keys if they are to be named."""
    return ", ".join(
        (f"{key} " if named else "") + (f"{value:.4g}" if isinstance(value, float) else f"{value}")
        for key, value in config.items()
    )
