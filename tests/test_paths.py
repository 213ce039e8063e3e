"""Folders of any name: data, storage, checkpoint and what commands make work in it, or are refused before anything is made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing.pack import Packing, pack, unpack
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.picture_check import require_pictures
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream.images import read_picture_bytes
from services.model_files import model_files
from services.prediction_output import write_predictions
from tests.services.cli.conftest import run_m2can  # noqa: F401  (a fixture)
from tests.trainers.tiny_run import SMALL, make_loop, prepared_run
from trainers.journal.journal import EpochRecord, Journal
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import claim, prepare
from trainers.preflight.run_lock import driver_lock
from trainers.recipe import load_recipe

NAMES = [
    "a b", "My%20Project", "what?", "no#1", "'q' \"d\"", "back\\slash", "Größe 漢字", "e\u0301te\u0301", "x" * 200, "é" * 120,
    "~", "$HOME", "*.[a]", "{x}", "a:b", "s3:", "models:", "catalog:x", "100%", "a&b=c;d", ".hidden", "a\nb", "tab\t", "\udcff",
    "x" * 255, "x" * 256, "\u202egnp", " ",
]  # fmt: skip
ANY_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


def can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except (OSError, ValueError):
        return False
    return True


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a checkpoint, and a recipe beside them."""
    place = tmp_path_factory.mktemp("source")
    loop = make_loop(prepared_run(place, ["train.epochs=1"]))
    loop.snapshot({"kept_rows": torch.zeros(1)}).write(place / "checkpoint")
    shutil.rmtree(place / "postcards")
    write_postcards(place / "postcards", train=8, val=3)
    data = {"sources": ["postcards/seaside/manifest.yaml"], "target": "postcards/city/manifest.yaml"}
    (place / "recipe.yaml").write_text(yaml.safe_dump({"data": data, "run": {"name": "mine"}}))
    return place


def use(folder: Path) -> None:
    """What runs and commands do with data, storage and checkpoint that lie in `folder`."""
    manifest = load_manifest(str(folder / "postcards" / "city" / "manifest.yaml"))
    table = read_split(manifest, "train").table
    pictures = [path for row in table["images"].to_pylist() for path in row]
    assert pictures and all(read_picture_bytes(path) for path in pictures)
    packed = pack(manifest, folder / "packed", Packing())
    assert packed.bad == 0 and load_manifest(unpack(load_manifest(packed.manifest), folder / "unpacked")).classes
    corpus = load_corpus([str(folder / "postcards" / "seaside" / "manifest.yaml")], str(packed.manifest))
    assert require_pictures(corpus, 0.0) == []
    for name in ("p.csv", "p.parquet", "p.jsonl"):
        write_predictions(pa.table({"id": ["a"]}), folder / "out" / name)
    predictor = Predictor.load(model_files(folder / "checkpoint"))
    assert predictor.predict(["a day"], [[pictures[0]]]).labels[0] in predictor.classes
    recipe = load_recipe(folder / "recipe.yaml", [*SMALL, f"run.storage={yaml.safe_dump(str(folder / 'runs'))}"])
    prepared = prepare(recipe)
    assert prepared.folder == folder / "runs" / "mine"
    with driver_lock(prepared.folder):
        claim(prepared)
        Journal(prepared.folder / "journal").append(EpochRecord(1, 1, 0.0, {}))


def works_or_is_refused(place: Path, name: str, source: Path) -> None:
    folder = place / name
    if name in (".", "..") or not can_be_made(folder):
        return
    for path in source.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, folder / path.name)
    try:
        use(folder)
    except InputError as error:
        assert not name.isprintable() or "://" in name, error
        assert "run.storage" in str(error) or "the path has bytes that are not UTF-8" in str(error), error
        assert not (folder / "runs").exists()
    beside = [path for path in os.listdir(place) if path != name]
    assert beside == []
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_a_folder_of_this_name_works_or_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    works_or_is_refused(tmp_path, name, source)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12, derandomize=True)
@given(ANY_NAME)
def test_a_folder_of_any_name_works_or_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    works_or_is_refused(tmp_path, name, source)


@pytest.mark.parametrize("name", [*NAMES, "-x", "--out"], ids=lambda name: ascii(name[:12]))
def test_a_command_given_this_name_works_or_changes_nothing(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_m2can: Any,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_m2can("data", "generate", name, "--train", "3", "--val", "3")
    if code == 0:
        assert os.listdir(tmp_path) == [name]
        code, _, err = run_m2can("data", "check", f"{name}/city/manifest.yaml")
        assert "Traceback" not in err, err
    else:
        assert code in (1, 2) and "Traceback" not in err, err
    assert set(os.listdir(tmp_path)) <= {name}
