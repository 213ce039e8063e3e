"""How a run's MLflow run is closed: by what ended the training. Nothing trains here."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from tests.trainers.made_run import made_run
from trainers import training_run
from trainers.failures import RunFailed, RunStopped, TrackingUnavailable
from trainers.journal.findings import Finding
from trainers.journal.outcome import Outcome
from trainers.preflight.preparation import Prepared
from trainers.tracking.sender import TrackedRun


class FakeSender:
    """Notes how the MLflow run was closed. One whose upload was interrupted by a signal is busy from then on."""

    def __init__(self, away: bool, stopped: bool = False) -> None:
        self.stopped, self.uploads = stopped, False
        self.run_id = "id"
        self.away, self.statuses, self.models, self.tags = away, [], [], {"m2can.target": "sea"}
        self.model_tags: dict[str, str] = {}
        self.model_numbers: dict[str, float | None] = {}  # which become tags of the version, too

    def start(self) -> None:
        pass

    def finish(self, status: str, *, artifacts: Path | None = None, model: Any = None, **_: Any) -> TrackedRun:
        assert not self.uploads
        self.statuses.append(status)
        self.models.append(model)
        if self.stopped:
            self.uploads = True
            raise RunStopped("asked")
        if self.away:
            raise TrackingUnavailable("MLflow was away")
        return TrackedRun("id", "m2can-sea" if model else None, "3" if model else None, "7")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return made_run(tmp_path_factory.mktemp("made"))


def run(
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    *,
    error: BaseException | None = None,
    steps: int = 1,
    away: bool = False,
    register: bool = True,
    stopped: bool = False,
) -> tuple[training_run.Result | BaseException, FakeSender]:
    """Of a training that takes `steps` steps and then ends, with `error` if there is one."""
    sender, second, recipe = FakeSender(away, stopped), FakeSender(away), outcome.card.recipe
    second.statuses, senders = sender.statuses, iter([sender, second])
    prepared = Prepared(recipe, outcome.name, outcome.folder, outcome.corpus, outcome.card, [], 0, 0)

    def train(prepared: Prepared, *, on_step: Any, **_: Any) -> Outcome:
        for step in range(steps):
            on_step({"step": step, "precision": "bf16"})
        if error is not None:
            raise error
        return outcome

    def made(*_: Any, precision: str | None) -> FakeSender:
        made = next(senders)
        assert precision == ("bf16" if steps and made is sender else None)  # what the workers said
        return made

    monkeypatch.setattr(training_run, "prepare_and_start_ray", lambda recipe: prepared)
    monkeypatch.setattr("trainers.cluster.driver.run_lock", lambda *_: nullcontext())
    monkeypatch.setattr("trainers.cluster.driver.train", train)
    monkeypatch.setattr("trainers.tracking.run_sender.make_sender", made)

    def model_to_log(*given: Any, **_: Any) -> str:
        sender.model_numbers, sender.model_tags = given[2], given[4]
        return "the model"

    monkeypatch.setattr("trainers.tracking.run_sender.model_to_log", model_to_log)
    try:
        return training_run.run(recipe, register=register), sender
    except BaseException as raised:
        return raised, sender


@pytest.mark.parametrize(
    ("error", "steps", "statuses"),
    [
        (RunFailed("diverged"), 1, ["FAILED"]),
        (RunFailed("no worker started"), 0, ["FAILED"]),
        (RunStopped("asked"), 1, ["KILLED"]),
        (KeyboardInterrupt(), 1, ["KILLED"]),
        (InputError("is the name of a run with another recipe"), 0, []),
        (InputError("found late"), 1, ["FAILED"]),
    ],
)
@pytest.mark.parametrize("away", [False, True])
def test_the_mlflow_run_is_closed_by_what_ended_the_training(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, error: BaseException, steps: int, statuses: list[str], away: bool
) -> None:
    raised, sender = run(outcome, monkeypatch, error=error, steps=steps, away=away)
    assert raised is error and sender.statuses == statuses


def test_a_stop_while_the_report_is_drawn_or_the_model_registered_closes_the_mlflow_run(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, sender = run(outcome, monkeypatch, stopped=True)
    assert isinstance(raised, RunStopped) and sender.statuses == ["FINISHED", "KILLED"]

    def draw(_: Outcome, *, pictures: bool) -> Path:
        raise RunStopped("asked")

    monkeypatch.setattr("trainers.reports.run_report.draw_report", draw)
    raised, sender = run(outcome, monkeypatch)
    assert isinstance(raised, RunStopped) and sender.statuses == ["KILLED"]


@pytest.mark.parametrize("register", [True, False])
def test_a_finished_run_is_reported_and_registered_if_wanted(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, register: bool
) -> None:
    result, sender = run(outcome, monkeypatch, register=register)
    assert isinstance(result, training_run.Result)
    assert (sender.statuses, sender.models) == (["FINISHED"], ["the model" if register else None])
    assert (result.folder / "best").resolve() == result.checkpoint.resolve()
    assert result.report_page.is_file() and (result.report / "summary.json").is_file()
    end = result.to_dict()
    assert (end["event"], end["run_id"], end["model_version"]) == ("end", "id", "3" if register else None)
    assert (end["chosen_epoch"], end["oracle_epoch"]) == (2, 3)
    assert end["regret"] == pytest.approx(0.1)
    expected = {
        "target_accuracy_expected": 0.6,
        "target_accuracy_expected_low": 0.4,
        "target_accuracy_expected_high": 0.75,
    }
    summary = json.loads((result.report / "summary.json").read_text())
    for place in (end, summary, vars(result), *([sender.model_numbers] if register else [])):
        assert {name: place[name] for name in expected} == expected
    assert result.chosen_metrics["source/hill/val/accuracy"] == 0.8
    shown = result._repr_html_()
    assert "hill + town → sea" in shown and "<td>60.0 %</td>" in shown and "data:image/" in shown


def test_what_went_wrong_is_in_the_end_event_the_registry_and_the_last_lines(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from services.cli.commands.train import print_result

    found = [Finding("one-class", "all are `good`", "state uacr.prior"), Finding("few-steps", "4 steps", "more")]
    result, sender = run(replace(outcome, findings=found), monkeypatch)
    assert isinstance(result, training_run.Result)
    assert [warning["name"] for warning in result.to_dict()["warnings"]] == ["one-class", "few-steps"]
    assert sender.model_tags == {"m2can.target": "sea", "m2can.warnings": "one-class, few-steps"}
    print_result(result)
    last = capsys.readouterr().out.splitlines()[-4:]
    assert [line.strip() for line in last] == [
        "warning     all are `good`",
        "state uacr.prior",
        "warning     4 steps",
        "more",
    ]
    without, sender = run(outcome, monkeypatch)
    assert isinstance(without, training_run.Result) and without.to_dict()["warnings"] == []
    assert "m2can.warnings" not in sender.model_tags


def test_mlflow_away_at_the_end_is_told(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    raised, _ = run(outcome, monkeypatch, away=True)
    assert isinstance(raised, TrackingUnavailable)
