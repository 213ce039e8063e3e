"""`m2can models drift` from a trained model: the same data, darker pictures, another language; samples; older models."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from services.cli.main import app
from services.drift.check import check_drift
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.exported.export import export_model
from trainers.model.card import model_folder
from trainers.model.predictor import Predictor
from trainers.model.reference import FACTS, SEEN_FILE, Seen, fingerprint
from trainers.preflight.preparation import prepare
from trainers.worker.reports import evaluation_tensors


@dataclass(frozen=True)
class Trained:
    """model: its folder. target: manifest of the target; its validation records are the model's reference."""

    model: Path
    target: Path

    def records(self) -> list[dict[str, Any]]:
        table = read_split(load_manifest(self.target), "val").table
        return table.select(["id", "texts", "images"]).to_pylist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("drift")
    prepared = prepare(small_recipe(folder, ["train.epochs=1", "run.name=drift"], val=60))
    loop = make_loop(prepared)
    _, scored = loop.run_epoch()
    loop.save(folder / "checkpoint", evaluation_tensors(loop, scored))
    return Trained(model_folder(folder / "checkpoint"), Path(prepared.recipe.data.target))


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    """A manifest of these records."""
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"id": row["id"], "text": row["texts"], "image": [str(path) for path in row["images"]]})
        for row in records
    ]
    (folder / "later.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "name": "later",
        "classes": ["negative", "neutral", "positive"],
        "splits": {"later": {"records": "later.jsonl", "image_root": "/", "allow_absolute": True}},
    }
    (folder / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    return folder / "manifest.yaml"


def names(folder: Path, on: Path | str, split: str = "all") -> set[str]:
    return {one.what for one in check_drift(folder, str(on), split).drift.moved}


def test_the_reference_is_what_prediction_says(trained: Trained) -> None:
    seen, rows = Seen.read(trained.model), trained.records()
    assert seen is not None and len(seen) == len(rows) == 60
    found = Predictor.load(trained.model, "cpu").predict_usable([r["texts"] for r in rows], [r["images"] for r in rows])
    for kept, predicted in (
        (seen.probs_NC, found.probs),
        (seen.facts_NF, found.facts),
        (seen.features_NK, found.features),
    ):
        for column in range(kept.shape[1]):  # records of the reference have no order
            assert sorted(kept[:, column]) == pytest.approx(sorted(predicted[:, column]), abs=1e-4, nan_ok=True)
    assert names(trained.model, trained.target, "val") == set()


def test_darker_pictures_are_named(trained: Trained, tmp_path: Path) -> None:
    rows = trained.records()
    for row in rows:
        for number, path in enumerate(row["images"]):
            dark = tmp_path / f"{row['id']}-{number}.png".replace("/", "-")
            cv2.imwrite(str(dark), (cv2.imread(path) * 0.4).astype("uint8"))
            row["images"][number] = dark
    found = names(trained.model, write(tmp_path / "dark", rows))
    assert FACTS["brightness"] in found
    assert not found & {FACTS["tokens"], FACTS["unknown"], FACTS["pictures"]}


def test_another_language_is_named(trained: Trained, tmp_path: Path) -> None:
    rows = trained.records()
    for row in rows:
        row["texts"] = [re.sub(r"[a-z]+", lambda word: "ß" + word[0][::-1], text.lower()) for text in row["texts"]]
    found = names(trained.model, write(tmp_path / "language", rows))
    assert found & {FACTS["tokens"], FACTS["unknown"]}
    assert not found & {FACTS["brightness"], FACTS["contrast"], FACTS["pictures"]}


def test_a_sample_of_predictions_takes_the_place_of_a_manifest(trained: Trained, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    sample, page = tmp_path / "sample.parquet", tmp_path / "drift.html"
    predict = ("predict", trained.model, "--data", trained.target, "--split", "val", "--out", tmp_path / "out.csv")
    run(*predict, "--sample", sample, "--sample-size", 40)
    told = run("models", "drift", trained.model, "--on", sample, "--page", page)
    assert told.startswith("The data did not move: 40 records against 60 of training")
    assert "40 of 60 records" in page.read_text(encoding="utf-8")
    content = json.loads(run("models", "drift", trained.model, "--on", sample, "--json"))
    assert content["moved"] == [] and content["records"] == 40
    expected = content["expected_accuracy"]
    assert 0 <= expected["low"] <= expected["accuracy"] <= expected["high"] <= 1
    words = f"between {100 * expected['low']:.0f} and {100 * expected['high']:.0f} %"
    assert f"expected accuracy now  {words}" in told and f"Expected accuracy now: {words}" in page.read_text(
        encoding="utf-8"
    )
    assert sum(content["shares_now"]) == pytest.approx(1)
    with pytest.raises(InputError, match="--sample: does not go with a folder"):
        run(*predict[:-1], tmp_path / "folder/", "--sample", sample)


def test_a_model_of_an_earlier_version_is_compared_with_its_target(trained: Trained, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained.model, old)
    (old / SEEN_FILE).unlink()
    assert fingerprint(old) != fingerprint(trained.model)
    checked = check_drift(old, str(trained.target), "val")
    assert not checked.drift.moved and checked.expected is None
    assert "keeps no records of its training" in checked.notes[0] and f"{trained.target}, val" in checked.notes[0]
    card = json.loads((old / "model.json").read_text(encoding="utf-8"))
    card["recipe"]["data"]["target"] = str(tmp_path / "gone.yaml")
    (old / "model.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"its target is not here; found .*; wanted the target's manifest at .*gone\.yaml"
    ):
        check_drift(old, str(trained.target), "val")


def test_an_exported_model_keeps_what_later_records_are_compared_with(trained: Trained, tmp_path: Path) -> None:
    rows = trained.records()[:10]
    texts, images = ([row[name] for row in rows] for name in ("texts", "images"))
    out = tmp_path / "exported"
    export_model(Predictor.load(trained.model, "cpu"), out, "torch", texts, images, made_of=trained.model)
    checked = check_drift(out, str(trained.target), "val")
    assert checked.drift.moved == [] and checked.notes == []
    assert fingerprint(out) == fingerprint(trained.model)
