"""What commands print while a run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import CaptureFixture

from services.cli import output
from services.cli.commands.train import print_result
from trainers.journal.journal import EpochRecord
from trainers.run_result import Result
from trainers.validators.checked import CheckedAccuracy
from trainers.validators.expected import ExpectedAccuracy


def test_plain_lines_of_progress(capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(output.time, "monotonic", lambda: clock["now"])
    content = {"epoch": 2, "steps": 10, "samples": 40, "passes": {"second": {"task": 1.5, "total": 1.25}}}
    with output.RunProgress(as_json=False) as progress:
        progress.epochs = 4
        for step, clock["now"] in ((5, 100.0), (6, 105.0), (7, 120.0)):  # the second comes too soon to be shown
            progress.on_step({**content, "step": step})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "epoch 2/4 step 5/10  task 1.500  total 1.250",
        "epoch 2/4 step 7/10  4 samples/s  task 1.500  total 1.250  3:50 min left",
    ]


def test_the_floor_is_told_before_the_first_step(capsys: CaptureFixture[str]) -> None:
    metrics = {"source/val/accuracy": 0.71, "selection/score": 0.02, "time/floor_s": 1.24}
    for as_json in (False, True):
        output.RunProgress(as_json).on_floor(metrics)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == 2 * ["floor  sources 71.0 %  without training  1.2 s"]
    assert json.loads(shown.out) == {"event": "floor", "metrics": metrics}
    metrics |= {"zero_shot/source/val/accuracy": 0.42, "zero_shot/target/val/accuracy": 0.4}
    output.RunProgress(False).on_floor(metrics)
    said = "zero-shot  sources 42.0 %  target 40.0 % (its labels are not used)  by class names, without training"
    assert capsys.readouterr().err.splitlines()[0] == said


def ended(tmp_path: Path, **changes: Any) -> Result:
    accuracies = dict.fromkeys(("target_accuracy_chosen", "target_accuracy_last", "target_accuracy_oracle", "regret"))
    known = {
        "run_id": "abc",
        "experiment_id": "7",
        "tracking_uri": "sqlite:////runs/mlflow.db",
        "model_name": "m2can-sea",
    }
    return Result(
        "mine", tmp_path, ["city"], "sea", tmp_path / "checkpoint", "infomax", 1, 2, None, **accuracies,
        report=tmp_path, report_page=tmp_path / "report.html",
        records=[EpochRecord(1, 10, 0.0, {"source/val/accuracy": 0.875})],
        **(known | {"model_version": "3"} | changes),
    )  # fmt: skip


def test_the_end_of_a_run_says_how_to_open_its_page_in_mlflow(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    print_result(ended(tmp_path))
    shown = capsys.readouterr().out
    assert "model       models:/m2can-sea@candidate (version 3)" in shown
    assert (
        "http://127.0.0.1:5000/#/experiments/7/runs/abc after mlflow server --backend-store-uri sqlite:////runs/mlflow.db"
    ) in shown
    print_result(ended(tmp_path, tracking_uri="https://user:secret@there/mlflow/", model_name=None))
    shown = capsys.readouterr().out
    assert "MLflow run  https://***@there/mlflow/#/experiments/7/runs/abc\n" in shown and "model  " not in shown


def test_without_target_labels_the_choice_is_told(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    print_result(ended(tmp_path))
    shown = capsys.readouterr().out
    assert "chosen      epoch 1 of 2 (without target labels, by infomax), sources 87.5 %\n" in shown
    assert "the accuracy on sea is not known, not measured: m2can data suggest" in shown


def test_a_version_that_is_not_the_candidate_is_told(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    print_result(ended(tmp_path, not_candidate="its source accuracy 0.5 is below 0.9"))
    shown = capsys.readouterr().out
    assert "model       m2can-sea:3, not the candidate: its source accuracy 0.5 is below 0.9" in shown
    assert "m2can models promote m2can-sea:3 --to candidate" in shown and "@candidate" not in shown


def test_a_run_that_stopped_early_says_why(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    why = "after epoch 12 of 40: no selection score better than epoch 7's 0.873 in 5 epochs (train.patience)"
    result = ended(tmp_path, stopped_early=why)
    print_result(result)
    assert f"stopped     {why}\n" in capsys.readouterr().out
    assert result.to_dict()["stopped_early"] == why
    print_result(ended(tmp_path))
    assert "stopped  " not in capsys.readouterr().out


EXPECTED = ExpectedAccuracy(0.643, 0.551, 0.72)


def test_an_epoch_shows_the_expected_accuracy_beside_the_true_one() -> None:
    metrics = {"loss/total": 1.0, "selection/score": 0.5, **EXPECTED.metrics()}
    line = output.epoch_line(EpochRecord(1, 10, 0.0, metrics), 4)
    assert "  target about 64 % (55-72)  " in line and "labels" not in line
    line = output.epoch_line(EpochRecord(1, 10, 0.0, metrics | {"target/val/accuracy": 0.7}), 4)
    assert "  target about 64 % (55-72)  target 70.0 % (its labels are not used)  " in line
    assert "about" not in output.epoch_line(EpochRecord(1, 10, 0.0, {"loss/total": 1.0}), 4)


def test_what_held_out_labels_say_stands_beside_what_was_expected(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    checked = CheckedAccuracy(0.6, 0.36, 0.8, 10)
    metrics = {"loss/total": 1.0, "source/val/accuracy": 0.875, **EXPECTED.metrics(), **checked.metrics()}
    record = EpochRecord(1, 10, 0.0, metrics)
    assert "target about 64 % (55-72)  target 60 % (36-80) on 10 labelled records held out  " in output.epoch_line(
        record, 4
    )
    result = replace(ended(tmp_path), records=[record])
    print_result(result)
    shown = capsys.readouterr().out
    assert "the accuracy on sea is 60 % (36-80) on 10 labelled records held out; without labels it is expected" in shown
    print_result(replace(result, oracle_epoch=2, target_accuracy_chosen=0.7, target_accuracy_oracle=0.7))
    assert "  measured: 60 % (36-80) on 10 labelled records held out\n" in capsys.readouterr().out


def test_the_end_of_a_run_tells_what_is_expected(tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    records = [EpochRecord(1, 10, 0.0, {"source/val/accuracy": 0.875, **EXPECTED.metrics()})]
    expected = {
        "target_accuracy_expected": 0.643,
        "target_accuracy_expected_low": 0.551,
        "target_accuracy_expected_high": 0.72,
    }
    result = replace(ended(tmp_path), records=records, **expected)
    print_result(result)
    assert "the accuracy on sea is expected to be about 64 % (55-72), not measured" in capsys.readouterr().out
    assert result.to_dict().items() >= expected.items()
    print_result(replace(result, oracle_epoch=2, target_accuracy_chosen=0.7, target_accuracy_oracle=0.7))
    assert "  expected of the chosen epoch without labels: about 64 % (55-72)\n" in capsys.readouterr().out
