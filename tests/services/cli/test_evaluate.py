"""`m2can evaluate`: a model beside what its run found before any training, the floor and the zero-shot classifier."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from services.assessment import assess
from tests.services.cli.conftest import Command
from tests.trainers.loop import test_zero_shot
from trainers.loop.floor import find_floor
from trainers.loop.loop import Loop
from trainers.model.floor_files import write_floor
from trainers.model.predictor import Predictor

place, model, loop = test_zero_shot.place, test_zero_shot.model, test_zero_shot.loop  # fixtures: a small CLIP


@pytest.fixture(scope="module")
def run(place: Path, loop: Loop) -> Path:
    """The folder of a run with an epoch, a floor and a zero-shot classifier."""
    folder = place / "runs" / "clip"
    found = find_floor(loop)
    assert found is not None and found.zero_shot is not None
    for one in (found, found.zero_shot):
        write_floor(
            folder, one.network, loop.frozen, loop.card, one.metrics, one.evaluation, zero_shot=one is not found
        )
    loop.run_epoch()
    loop.save(folder / "checkpoint_1", {})
    (folder / "report").mkdir()
    (folder / "recipe.json").write_text("{}")
    (folder / "report" / "summary.json").write_text(json.dumps({"chosen_epoch": 1}))
    return folder


def test_floor_and_zero_shot_stand_beside_the_model(run: Path, place: Path, tmp_path: Path, run_m2can: Command) -> None:
    manifest = str(place / "postcards" / "mountain" / "manifest.yaml")
    code, printed, err = run_m2can("evaluate", str(run), "--data", manifest, "--out", str(tmp_path / "found.json"))
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    before = found["without_training"]
    assert list(before) == ["floor", "zero_shot"]
    for name, one in (("checkpoint_1", found), *before.items()):
        wanted = assess(Predictor.load(run / name), manifest)
        assert {key: one[key] for key in wanted} == wanted, name
    lines = printed.splitlines()
    assert lines[1].split() == ["model", "floor", "zero-shot"]
    shown = [f"{100 * one['accuracy']:.1f}" for one in (found, before["floor"], before["zero_shot"])]
    assert lines[2].replace(" %", "").split() == ["accuracy", *shown]
    assert "\n  no " not in printed

    code, printed, err = run_m2can(
        "evaluate", str(run / "checkpoint_1"), "--data", manifest, "--json", "--out", str(tmp_path / "found.csv")
    )
    assert code == 0, err
    assert json.loads(printed) == found
    head, *rows = csv.reader((tmp_path / "found.csv").open(encoding="utf-8"))
    assert head == ["measure", "model", "floor", "zero-shot"]
    table = {name: values for name, *values in rows}
    assert [float(x) for x in table["accuracy"]] == [one["accuracy"] for one in (found, *before.values())]
    classes = list(found["per_class"])
    assert list(table)[3:] == [f"F1 of {name}" for name in classes]


def test_a_column_is_empty_where_a_model_brings_none(
    run: Path, place: Path, tmp_path: Path, run_m2can: Command
) -> None:
    manifest = str(place / "postcards" / "mountain" / "manifest.yaml")
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint_1").symlink_to(run / "checkpoint_1")
    (other / "frozen.safetensors").symlink_to(run / "frozen.safetensors")
    out = tmp_path / "found.csv"
    arguments = ("evaluate", str(other / "checkpoint_1"), "--data", manifest, "--out", str(out))
    code, printed, err = run_m2can(*arguments)
    assert code == 0, err
    why = "a model folder alone brings none; that of its run has it"
    assert f"  no floor: {why}\n  no zero-shot: {why}\n" in printed
    assert printed.splitlines()[2].split()[-2:] == ["–", "–"]
    assert next(row for row in csv.reader(out.open()) if row[0] == "accuracy")[2:] == ["", ""]
    (other / "recipe.json").write_text("{}")
    code, printed, err = run_m2can(*arguments)
    assert code == 0, err
    assert "no floor: the run found no floor\n" in printed
    assert "no zero-shot: the run did not begin with a dual encoder's weights\n" in printed
    code, _, err = run_m2can("evaluate", str(run), "--data", manifest, "--out", "found.txt")
    assert (
        code == 2 and "--out: what is found is not written in this form; found 'found.txt'; wanted a file .json" in err
    )
