"""The floor beside the epochs: chosen where a validator prefers it, shown where it does not, and never where it means nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli.commands.train import print_result
from tests.trainers.made_run import made_floor, made_run
from trainers.model.card import model_folder
from trainers.reports.run_report import draw_report
from trainers.run_result import Result
from trainers.training_run import _result


def result_of(folder: Path, *, better: bool, labelled: bool = True, **overrides: object) -> Result:
    overrides = {"uacr": {"warmup": 1, "update": 0.1}, **overrides}
    outcome = made_floor(made_run(folder, labelled=labelled, overrides=overrides), better=better)
    return _result(outcome, draw_report(outcome), None, None, {})


@pytest.mark.parametrize("labelled", [True, False])
def test_a_floor_that_the_validator_prefers_is_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labelled: bool
) -> None:
    result = result_of(tmp_path, better=True, labelled=labelled)
    assert result.floor is not None and result.floor.chosen
    assert result.checkpoint == result.folder / "floor"
    assert result.chosen_metrics["source/val/accuracy"] == 0.9
    assert result.findings[0].name == "floor"
    end = result.to_dict()
    assert (end["chosen_epoch"], end["floor"]["chosen"], end["target_accuracy_chosen"]) == (0, True, 0.8)
    assert "does not beat the floor" in end["warnings"][0]["what"]
    print_result(result)
    printed = capsys.readouterr().out
    assert "the floor" in printed and "adapted training does not beat the floor here" in printed
    assert "epoch 0" not in printed
    (result.folder / "recipe.json").write_text("{}")
    (result.checkpoint / "model").mkdir()
    (result.checkpoint / "model" / "model.json").write_text("{}")
    assert model_folder(result.folder) == result.checkpoint / "model"  # what `m2can predict RUN` takes
    page = result.report_page.read_text()
    assert "prefers the floor to all 3 epochs" in page and "The floor, which was chosen" in page


def test_a_floor_that_is_beaten_is_a_row_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(tmp_path, better=False)
    plain = made_run(tmp_path / "plain")
    assert result.floor is not None and not result.floor.chosen
    assert result.checkpoint.name.startswith("checkpoint-") and result.chosen_epoch > 0
    assert not [finding for finding in result.findings if finding.name == "floor"]
    print_result(result)
    printed = capsys.readouterr().out
    assert "floor" in printed and "35.0 % (by class names, without training)" in printed
    page = result.report_page.read_text()
    assert "the floor, without training" in page and "zero-shot, by the names of the classes" in page
    summary = json.loads((result.report / "summary.json").read_text())
    assert summary["floor"]["target_accuracy"] == 0.8
    zero_shot = {"checkpoint": str(result.folder / "zero_shot"), "source_accuracy": 0.45, "target_accuracy": 0.35}
    assert result.to_dict()["floor"]["zero_shot"] == zero_shot
    assert plain.numbers()["floor"] is None


def test_zero_shot_is_a_line_without_labels_of_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(result_of(tmp_path, better=False, labelled=False))
    assert "zero-shot   sources 45.0 %, by class names, without training" in capsys.readouterr().out


def test_the_floor_of_encoders_that_start_at_random_is_not_chosen(tmp_path: Path) -> None:
    tiny = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
    result = result_of(tmp_path, better=True, encoders=tiny)
    assert result.floor is not None and not result.floor.chosen and result.chosen_epoch > 0
