"""Exported models predict what the model predicts, whatever the numbers of samples, tokens and pictures; or are not written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import m2can
from datasets_manifest.errors import InputError
from services.cli.main import app
from tests.trainers.encoders import hub_folders
from tests.trainers.tiny_run import make_loop, prepared_run, small_recipe
from trainers.exported import export
from trainers.exported.export import export_model
from trainers.exported.graph import Form, inputs_of, trace
from trainers.exported.predictor import ExportedPredictor, is_exported
from trainers.loop.floor import find_floor
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import prepare
from trainers.recipe import make_recipe


def made(folder: Path, overrides: list[str] | None = None) -> Predictor:
    loop = make_loop(prepared_run(folder, overrides))
    return Predictor(loop.network, loop.card, loop.device)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return made(folder)


@pytest.fixture(scope="module")
def records(folder: Path) -> tuple[list[Any], list[Any]]:
    """With two pictures, one and none, with texts of several lengths and without."""
    pictures = sorted(str(path) for path in (folder / "postcards" / "mountain" / "images").iterdir())
    texts = ["steep path", "a long way up to the hut on a lovely day", "snow", None, ["two", "sentences here"]]
    return texts, [pictures[:2], pictures[2], None, pictures[3], pictures[4]]


@pytest.fixture(scope="module")
def exported(folder: Path, predictor: Predictor, records: tuple[list[Any], list[Any]]) -> Path:
    export_model(predictor, folder / "as-torch", "torch", *records)
    return folder / "as-torch"


def test_the_floor_has_a_graph(folder: Path) -> None:
    loop = make_loop(prepared_run(folder))
    found = find_floor(loop)
    assert found is not None
    predictor = Predictor(found.network, replace(loop.card, floor=True), loop.device)
    batch = predictor.example_batch()
    logits, fused = trace(predictor.network, batch).module()(*inputs_of(batch))
    with torch.inference_mode():
        outputs = predictor.network(batch)
    torch.testing.assert_close(logits, outputs.logits_HQDBC[:, 0, 0])
    torch.testing.assert_close(fused, outputs.fused_DBK[0])
    assert logits.shape == (1, 2, 3) and fused.shape == (2, 64)


def require_equal(predictor: Predictor, place: Path, records: tuple[list[Any], list[Any]]) -> None:
    other = ExportedPredictor(place)
    texts, images = records
    for batch_size in (5, 2, 1):
        found, wanted = (p.predict(texts, images, batch_size=batch_size) for p in (other, predictor))
        np.testing.assert_allclose(found.probs, wanted.probs, atol=1e-5)
        np.testing.assert_allclose(found.disagreement, wanted.disagreement, atol=1e-5)
        assert found.labels == wanted.labels and found.head_labels == wanted.head_labels
    np.testing.assert_allclose(other.embed(texts, images), predictor.embed(texts, images), atol=1e-4)


@pytest.mark.slow
def test_torch_export_predicts_the_same(
    predictor: Predictor, exported: Path, records: tuple[list[Any], list[Any]]
) -> None:
    assert is_exported(exported)
    require_equal(predictor, exported, records)
    assert predictor.network.text_encoder.packs  # and goes on as before
    done = CliRunner().invoke(app, ["models", "export", str(exported), "again", "--onnx"])
    assert "MODEL: was exported already" in str(done.exception)
    front_door = m2can.Predictor.load(exported)
    assert isinstance(front_door, m2can.Predictor)
    assert front_door.predict(*records).labels == predictor.predict(*records).labels
    told = json.loads((exported / "export.json").read_text())
    assert told["classes"] == predictor.classes and told["pictures"]["crop"] == 64
    assert told["compared"]["records"] == 5 and told["compared"]["most_off"] <= 1e-5
    assert told["compared"]["ms_after"] > 0


@pytest.mark.slow
def test_onnx_predicts_the_same_and_int8_gives_the_same_labels(
    tmp_path: Path, predictor: Predictor, records: tuple[list[Any], list[Any]]
) -> None:
    whole = export_model(predictor, tmp_path / "onnx", "onnx", *records)
    require_equal(predictor, tmp_path / "onnx", records)
    small = export_model(predictor, tmp_path / "int8", "onnx", *records, int8=True)
    assert small.equal_labels == 1 and small.most_off > whole.most_off
    assert small.bytes_after < whole.bytes_after


@pytest.mark.slow
@pytest.mark.parametrize(("write", "form"), [(hub_folders.write_clip, "onnx"), (hub_folders.write_siglip, "torch")])
def test_towers_of_dual_encoders_are_exported(tmp_path: Path, write: Any, form: Form) -> None:
    write(tmp_path / "dual")
    data = small_recipe(tmp_path).data
    domains = {"sources": data.sources, "target": data.target, "texts": {"max_tokens": 12}}
    loop = make_loop(prepare(make_recipe({"data": domains, "encoders": {"both": f"hf:{tmp_path}/dual"}})))
    towers = Predictor(loop.network, loop.card, loop.device)
    picture = next((tmp_path / "postcards" / "mountain" / "images").iterdir())
    texts, images = ["a photo of the sea", "good hill"], [str(picture), None]
    export_model(towers, tmp_path / "out", form, texts, images)
    other = ExportedPredictor(tmp_path / "out")
    np.testing.assert_allclose(other.predict(texts, images).probs, towers.predict(texts, images).probs, atol=1e-5)


@pytest.mark.slow
def test_what_predicts_otherwise_is_not_written(
    tmp_path: Path, exported: Path, records: tuple[list[Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def graph_of_another_network(program: Any, place: Path, form: str, **options: Any) -> None:
        shutil.copy(exported / "network.pt2", place)

    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "write_graph", graph_of_another_network)
    other = made(tmp_path / "other", ["train.seed=5"])
    with pytest.raises(InputError, match="records: none of them can be predicted; found 1"):
        export_model(other, tmp_path / "out", "torch", [None], ["gone.jpg"])
    with pytest.raises(InputError, match=r"MODEL: predicts otherwise than the model: a probability by 0\.\d+, "):
        export_model(other, tmp_path / "out", "torch", *records)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_cannot_be_exported_is_refused_first(
    tmp_path: Path, predictor: Predictor, records: tuple[list[Any], list[Any]]
) -> None:
    with pytest.raises(InputError, match="OUT: is there already"):
        export_model(predictor, tmp_path, "torch", *records)
    with pytest.raises(InputError, match="--int8: goes with --onnx"):
        export_model(predictor, tmp_path / "out", "torch", *records, int8=True)
    with pytest.raises(
        InputError, match=r"MODEL: is not exported in another precision than float32; found 'torch.float64'"
    ):
        export_model(made(tmp_path, ["train.precision=fp64"]), tmp_path / "out", "torch", *records)
    with pytest.raises(InputError, match="is not an exported model"):
        ExportedPredictor(tmp_path)


def test_a_network_that_torch_cannot_export_is_refused(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a branch depends on data\nand more")

    monkeypatch.setattr("torch.export.export", fails)
    with pytest.raises(InputError, match=r"MODEL: has no exported form \(a branch depends on data"):
        trace(predictor.network, predictor.example_batch())
    assert predictor.network.text_encoder.model.config._attn_implementation == "m2can_packed"


def test_the_command_wants_one_form(tmp_path: Path) -> None:
    for flags in ([], ["--onnx", "--published"]):
        done = CliRunner().invoke(app, ["models", "export", "nowhere", str(tmp_path / "out"), *flags])
        assert done.exit_code != 0
        assert "names one form" in str(done.exception) and "wanted one of them" in str(done.exception)
