"""Features and packed data sets that are written to an object store, and read from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream.images import read_picture_bytes
from services.cli.main import app
from tests.object_store import object_store
from tests.trainers.features.test_features import FROZEN, computed_here
from tests.trainers.tiny_run import small_recipe
from trainers.features import compute
from trainers.preflight.preparation import prepare
from trainers.recipe import load_recipe, stated_values
from trainers.store.run_store import COPIES, RunStore, written_to


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with object_store("data") as client:
        yield client


@pytest.fixture(autouse=True)
def machine(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(COPIES, str(tmp_path / "machine"))
    return tmp_path / "machine"


def m2can(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_an_interrupted_command_has_written_is_gone_on_with(machine: Path) -> None:
    place = "s3://data/interrupted"
    with pytest.raises(KeyboardInterrupt), written_to(place, "last.json") as folder:
        (folder / "shards").mkdir(parents=True)
        for name in ("shards/1", "shards/2", "part", "last.json"):
            (folder / name).write_text(name)
        raise KeyboardInterrupt
    assert not any(path.is_file() for path in machine.rglob("*"))
    with written_to(f"{place}/", "last.json") as folder:
        assert (folder / "shards" / "2").read_text() == "shards/2"
        (folder / "part").unlink()
        (folder / "shards" / "1").write_text("another text")
    assert set(RunStore(place).listing()) == {"shards/1", "shards/2", "last.json"}


def test_other_commands_do_not_make_a_folder_called_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ["data", "generate", "s3://data/cards", "--train", "3", "--val", "3"],
        ["data", "unpack", "m.yaml", "s3://data/x"],
    ):
        if words[1] == "unpack":
            words[2] = str(write_postcards(tmp_path / "cards", seed=2, train=3, val=3)["city"])
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, InputError) and "is an address, where nothing can be written" in str(
            result.exception
        )
    assert os.listdir(tmp_path) == ["cards"]


def test_the_file_that_tells_that_all_is_there_is_sent_last(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(RunStore, "put", lambda self, file, name: sent.append(name))
    with written_to("s3://data/order", "a.json") as folder:
        folder.mkdir(parents=True)
        for name in ("a.json", "b", "c"):
            (folder / name).write_text(name)
    assert sorted(sent[:2]) == ["b", "c"] and sent[2:] == ["a.json"]


def test_features_lie_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "computed_on_ray", computed_here)
    monkeypatch.setattr("trainers.cluster.local_cluster.start_ray", lambda address: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(stated_values(small_recipe(tmp_path, FROZEN))))
    place = "s3://data/features/shop"
    found = m2can("features", str(recipe), place, "--views", "1")
    assert (found["records"], found["out"]) == (126, place)
    assert m2can("features", str(recipe), place, "--views", "1")["resumed"] == 126
    notes = prepare(load_recipe(recipe, [f"encoders.features={place}"])).notes
    assert any(note.startswith("trains on features: 126 records, the weak and 1 strong views") for note in notes)


def test_a_data_set_is_packed_into_a_store(tmp_path: Path, machine: Path) -> None:
    original = write_postcards(tmp_path / "cards", seed=2, train=9, val=3)["city"]
    found = m2can("data", "pack", str(original), "s3://data/packed/city")
    assert found["manifest"] == "s3://data/packed/city/manifest.yaml" and found["records"] == 12
    names = set(RunStore("s3://data/packed/city").listing())
    assert names == {
        "manifest.yaml",
        "train.parquet",
        "val.parquet",
        "shards/train-00000.shard",
        "shards/val-00000.shard",
    }
    there, here = (read_split(load_manifest(path), "train").table for path in (found["manifest"], original))
    assert there["id"].to_pylist() == here["id"].to_pylist()
    for ours, theirs in zip(there["images"].to_pylist(), here["images"].to_pylist(), strict=True):
        assert [read_picture_bytes(path) for path in ours] == [Path(path).read_bytes() for path in theirs]
    assert not any(path.is_file() for path in machine.rglob("*"))
