"""What a sweep shows while it goes on, with trials as Tune has them."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from tests.tuning.sweeps import plan_of
from tuning import progress as shown
from tuning.progress import Progress, live_table


@dataclass
class TuneTrial:
    """What is looked at of ray.tune's Trial."""

    config: dict[str, Any]
    status: str = "RUNNING"
    last_result: dict[str, Any] | None = None
    trial_id: str = field(default_factory=lambda: uuid4().hex)

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


@pytest.fixture
def progress(tmp_path, monkeypatch):
    """Of four trials of two epochs; the clock stands still."""
    plan = plan_of(
        tmp_path, {"trials": 4, "space": {"uacr.start": {"low": 0.1, "high": 0.6}, "sam.rho": {"choices": [0, 0.05]}}}
    )
    clock = {"now": 0.0}
    monkeypatch.setattr(shown.time, "monotonic", lambda: clock["now"])
    made = pickle.loads(pickle.dumps(Progress(plan, epochs=2)))  # as Tune does
    made.clock = clock
    return made


def report(progress, trials, number, seconds, **result):
    progress.clock["now"] = seconds
    progress.on_trial_result(1, trials, trials[number], result)
    trials[number].last_result = result  # Tune does this afterwards


def test_lines_name_the_trial_its_values_the_best_and_the_time_left(progress, capsys):
    trials = [TuneTrial({"uacr.start": 0.25, "sam.rho": 0, "other": 7})]
    progress.on_trial_start(0, trials, trials[0])
    report(progress, trials, 0, 60.0, epoch=1, score=0.5)
    report(progress, trials, 0, 120.0, epoch=2, score=0.625, finished=True)
    trials[0].status = "TERMINATED"  # Tune says it after the last report
    trials.append(TuneTrial({"uacr.start": 0.5, "sam.rho": 0.05}))
    report(progress, trials, 1, 180.0, epoch=1, score=float("nan"))
    trials[1].status = "ERROR"
    progress.on_trial_error(1, trials, trials[1])
    assert capsys.readouterr().err.splitlines() == [
        "trial 1 of 4  epoch 1/2  score 0.5000  best 0.5000 (trial 1), 0 of 4 ended, 7:00 min left  sam.rho 0, uacr.start 0.25",
        "trial 1 of 4  ended, score 0.6250  best 0.6250 (trial 1), 1 of 4 ended, 6:00 min left  sam.rho 0, uacr.start 0.25",
        "trial 2 of 4  epoch 1/2  score nan  best 0.6250 (trial 1), 1 of 4 ended, 5:00 min left  sam.rho 0.05, uacr.start 0.5",
        "trial 2 of 4  failed  best 0.6250 (trial 1), 2 of 4 ended, 3:00 min left  sam.rho 0.05, uacr.start 0.5",
    ]


def test_a_sweep_that_goes_on_counts_its_own_work_alone(progress):
    trials = [TuneTrial({"uacr.start": 0.1}, "TERMINATED", {"score": 0.1, "epoch": 2}) for _ in range(3)]
    trials.append(TuneTrial({"uacr.start": 0.2}))
    progress.on_trial_start(0, trials, trials[3])
    assert progress.seconds_left(trials) is None
    report(progress, trials, 3, 30.0, epoch=1, score=0.0)
    assert progress.seconds_left(trials) == 30.0


@pytest.mark.parametrize(("height", "most"), [(60, 20), (24, 16)])
def test_a_terminal_shows_a_table(progress, monkeypatch, capsys, height, most):
    file = io.StringIO()
    monkeypatch.setattr(
        shown, "Console", lambda stderr: Console(file=file, force_terminal=True, width=100, height=height)
    )
    trials = [
        TuneTrial({"uacr.start": n / 100, "sam.rho": 0}, "TERMINATED", {"score": n / 100, "epoch": 2})
        for n in range(30)
    ]
    trials.append(TuneTrial({"uacr.start": 0.6, "sam.rho": 0.05}))
    with live_table():
        progress.on_trial_start(0, trials, trials[-1])
    text = file.getvalue()
    assert "best 0.2900 (trial 30), 30 of 4 ended" in text and "uacr.start" in text and "sam.rho" in text
    once = text.split("┏")[1]  # it is drawn again at the end
    rows = [line for line in once.splitlines() if "terminated" in line or "running" in line]
    assert (
        len(rows) == most
        and "31" in rows[-1]
        and "running" in rows[-1]
        and f"and {31 - most} more with lower scores" in text
    )
    report(progress, trials, 30, 1.0, epoch=1, score=0.5)  # lines again
    assert capsys.readouterr().err.startswith("trial 31 of 4  epoch 1/2  score 0.5000")


def test_the_best_is_the_first_of_equals(progress):
    trials = [TuneTrial({}, last_result={"score": score}) for score in (float("nan"), 0.5, 0.5)]
    assert progress.best_so_far(trials) == (0.5, 2) and progress.best_so_far([TuneTrial({})]) is None
