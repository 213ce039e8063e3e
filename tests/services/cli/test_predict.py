"""`m2can predict` and `m2can evaluate`: what a model may be called, forms of output, scores of each class, abstaining."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from services import registry
from services.assessment import assess
from services.model_files import model_files
from tests.services.cli.conftest import Command
from tests.services.registered import NAME, Registered
from trainers.model.predictor import Predictor


@pytest.fixture
def m2can(registered: Registered, monkeypatch: pytest.MonkeyPatch, run_m2can: Command) -> Command:
    """The command, beside the registered models' store."""
    monkeypatch.chdir(registered.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return run_m2can


@pytest.fixture(scope="module")
def run_folder(registered: Registered) -> Path:
    """A run's folder whose second epoch was chosen: what is looked at of it."""
    folder = registered.storage / "made-run"
    for epoch, bundle in enumerate(registered.bundles, start=1):
        shutil.copytree(bundle.parent, folder / f"checkpoint_{9 - epoch}")  # names do not follow the epochs
    (folder / "report").mkdir()
    (folder / "recipe.json").write_text("{}")
    (folder / "report" / "summary.json").write_text(json.dumps({"chosen_epoch": 2}))
    return folder


def test_a_model_is_found_by_all_its_names(
    registered: Registered, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(registered.folder)
    registry.fetch(registered.client, f"{NAME}:1", tmp_path / "fetched")
    first = (
        str(registered.bundles[0]),
        registered.bundles[0].parent,
        f"{NAME}:1",
        f"models:/{NAME}/1",
        tmp_path / "fetched",
    )
    second = ("checkpoint-2", "runs/made-run", run_folder, NAME, f"{NAME}@candidate", f"models:/{NAME}@candidate")
    weights = [(bundle / "model.safetensors").read_bytes() for bundle in registered.bundles]
    for names, wanted in ((first, weights[0]), (second, weights[1])):
        for name in names:
            found = model_files(name, registered.uri, registered.storage)
            assert (found / "model.safetensors").read_bytes() == wanted, name


def test_a_run_that_has_not_ended_has_no_model_yet(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint_7")
    with pytest.raises(InputError, match="the checkpoint of its chosen epoch 2 is gone"):
        model_files(folder)
    shutil.rmtree(folder / "report")
    with pytest.raises(InputError, match=r"has not ended: no checkpoint is chosen yet; wanted one of .*checkpoint_8"):
        model_files(folder)
    with pytest.raises(InputError, match=r"no such folder; found .*nowhere"):
        model_files("nowhere/checkpoint")


def test_evaluate_takes_what_models_list_prints(registered: Registered, m2can: object) -> None:
    code, out, err = m2can("models", "list")  # type: ignore[operator]
    assert code == 0, err
    names = [line.split()[0] for line in out.splitlines()]
    assert names == [f"{NAME}:2", f"{NAME}:1"]
    code, out, err = m2can("evaluate", names[1], "--data", str(registered.manifest), "--json")  # type: ignore[operator]
    assert code == 0, err
    found = json.loads(out)
    why = "the registry keeps none, and the folder of the model's run is not here"
    assert found.pop("without_training") == {"floor": {"absent": why}, "zero_shot": {"absent": why}}
    assert found == assess(Predictor.load(registered.bundles[0]), registered.manifest)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_files_of_every_form_hold_the_same(registered: Registered, m2can: object, tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / name
    manifest = str(registered.manifest)
    arguments = ("predict", f"{NAME}:1", "--data", manifest, "--split", "val", "--out", str(out), "--json")
    code, printed, err = m2can(*arguments)  # type: ignore[operator]
    assert code == 0, err
    summary = json.loads(printed)
    assert (summary["records"], summary["bad"], summary["abstained"], summary["out"]) == (12, 0, None, str(out))
    read = {".csv": pd.read_csv, ".jsonl": lambda file: pd.read_json(file, lines=True), ".parquet": pd.read_parquet}
    found = read[out.suffix](out)
    table = read_split(load_manifest(registered.manifest), "val").table
    wanted = Predictor.load(registered.bundles[0]).predict(table["texts"].to_pylist(), table["images"].to_pylist())
    assert found["id"].tolist() == table["id"].to_pylist()
    assert found["label"].tolist() == wanted.labels
    np.testing.assert_allclose(found[[f"prob_{each}" for each in wanted.classes]], wanted.probs, atol=1e-6)
    heads = found["head_labels"].tolist()
    assert [json.loads(cell) if out.suffix == ".csv" else list(cell) for cell in heads] == wanted.head_labels
    assert found["problem"].isna().all()


def test_all_records_of_a_manifest_are_predicted_in_their_order(
    registered: Registered, m2can: object, tmp_path: Path
) -> None:
    """Of a file that is divided, too."""
    pd.DataFrame({"text": [f"a day {n}" for n in range(20)]}).to_csv(tmp_path / "shop.csv")
    (tmp_path / "shop.yaml").write_text(
        "name: shop\nclasses: [positive, neutral, negative]\nsplits: {train: {records: shop.csv}}\nsplit: {val: 0.25}\n"
    )
    for data, wanted in ((tmp_path / "shop.yaml", [f"train-{n + 1}" for n in range(20)]), (registered.manifest, None)):
        out = tmp_path / "p.csv"
        code, printed, err = m2can("predict", f"{NAME}:1", "--data", str(data), "--out", str(out))  # type: ignore[operator]
        assert code == 0, err
        if wanted is None:
            manifest = load_manifest(data)
            wanted = [i for split in manifest.splits for i in read_split(manifest, split).table["id"].to_pylist()]
        assert f"{len(wanted)} records (all): " in printed
        assert pd.read_csv(out)["id"].tolist() == wanted


def test_other_forms_are_refused_before_anything_is_loaded(
    m2can: object, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "load", lambda *_: pytest.fail("loaded"))
    for out in ("p.xlsx", "p.json", "folder/p.parq"):
        arguments = ("predict", NAME, "--data", str(registered.manifest), "--out", out)
        code, _, err = m2can(*arguments)  # type: ignore[operator]
        assert code == 2 and "wanted a file .csv, .jsonl, .parquet, or a folder/" in err
    code, _, err = m2can("predict", NAME, "--text", "a day", "--out", "p.csv")  # type: ignore[operator]
    assert code == 2 and "--out: goes with --data" in err


def test_abstaining_leaves_labels_out_and_says_how_many(registered: Registered, m2can: object, tmp_path: Path) -> None:
    predictor, data = Predictor.load(registered.bundles[0]), str(registered.manifest)
    table = read_split(load_manifest(data), "val").table
    result = predictor.predict(table["texts"].to_pylist(), table["images"].to_pylist())
    below = float(np.median(result.confidence))
    sure = result.confidence >= below
    out = tmp_path / "p.parquet"
    options = ("--split", "val", "--abstain-below", str(below))
    arguments = ("predict", f"{NAME}:1", "--data", data, "--out", str(out), *options)
    code, printed, err = m2can(*arguments)  # type: ignore[operator]
    assert code == 0, err
    assert f"{(~sure).sum()} have no label for want of confidence" in printed
    found = pd.read_parquet(out)
    assert found["abstained"].tolist() == (~sure).tolist()
    assert found["label"].isna().tolist() == (~sure).tolist() and found["confidence"].notna().all()
    metrics = assess(predictor, data, abstain_below=below)
    right = np.array(result.labels) == np.array(predictor.classes)[table["label"].to_numpy()]
    wanted = {"below": below, "records": sure.sum(), "coverage": sure.mean(), "accuracy": right[sure].mean()}
    assert metrics["abstaining"] == pytest.approx(wanted)
    code, printed, err = m2can("predict", f"{NAME}:1", "--text", "a day", "--abstain-below", "1", "--json")  # type: ignore[operator]
    assert json.loads(printed)["label"] is None and json.loads(printed)["abstained"] is True


class Fixed:
    """Predicts what it is told."""

    def __init__(self, labels: list[str | None]) -> None:
        self.labels, self.classes = labels, ["negative", "neutral", "positive"]

    def predict_usable(self, texts: list[object], images: list[object]) -> object:
        from trainers.model.predictor import Predictions

        probs = np.array(
            [[np.nan] * 3 if name is None else np.eye(3)[self.classes.index(name)] for name in self.labels]
        )
        nothing: list[list[str]] = [[] for _ in self.labels]
        problems = ["bad" if name is None else None for name in self.labels]
        count = len(self.labels)
        seen = np.zeros((count, 64)), np.zeros((count, 5))
        return Predictions(self.classes, probs, self.labels, np.zeros(count), nothing, nothing, problems, *seen)


def test_scores_of_each_class(tmp_path: Path) -> None:
    true = ["negative", "negative", "neutral", "neutral", "negative"]
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps({"text": "a", "label": name}) for name in true))
    (tmp_path / "manifest.yaml").write_text(
        "name: shop\nclasses: [positive, neutral, negative]\nsplits: {val: {records: val.jsonl}}\n"
    )
    predicted = Fixed(["negative", "neutral", "neutral", "neutral", None])
    metrics = assess(predicted, tmp_path / "manifest.yaml")  # type: ignore[arg-type]
    assert metrics["accuracy"] == 3 / 5 and metrics["not_predicted"] == 1
    assert metrics["per_class"] == {
        "negative": {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "records": 2},
        "neutral": {"precision": pytest.approx(2 / 3), "recall": 1, "f1": 0.8, "records": 2},
        "positive": {"precision": None, "recall": None, "f1": None, "records": 0},
    }


def test_evaluate_prints_each_class(registered: Registered, m2can: object) -> None:
    arguments = ("evaluate", f"{NAME}:1", "--data", str(registered.manifest), "--abstain-below", "0")
    code, out, err = m2can(*arguments)  # type: ignore[operator]
    assert code == 0, err
    lines = out.splitlines()
    heading = next(
        number for number, line in enumerate(lines) if line.split() == ["precision", "recall", "F1", "records"]
    )
    assert [line.split()[0] for line in lines[heading + 1 : heading + 4]] == ["negative", "neutral", "positive"]
    assert sum(int(line.split()[-1]) for line in lines[heading + 1 : heading + 4]) == 12
    assert "12 records, coverage 100.0 %" in out
