"""A corpus that is too large for a table on each node: its rows lie in shards, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.records import corpus as corpus_module
from datasets_manifest.records import large_corpus
from datasets_manifest.records.corpus import Corpus, load_corpus
from datasets_manifest.records.readers import _UniqueIds
from datasets_manifest.records.sharded_table import ShardedTable, in_memory
from tests.object_store import object_store
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.preflight.preparation import prepare
from trainers.tracking.provenance import data_hashes


def record(number: int, label: str | None = "good", **other: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "text": f"card {number}", "image": None, "label": label} | other


def domain(folder: Path, classes: Sequence[str], *files: list[dict[str, Any]], val: bool = True) -> str:
    """A manifest whose training split is several Parquet files."""
    folder.mkdir()
    for number, records in enumerate(files):
        pq.write_table(pa.Table.from_pylist(records), folder / f"{number}.parquet", row_group_size=3)
    splits: dict[str, Any] = {"train": {"records": [f"{number}.parquet" for number in range(len(files))]}}
    if val:
        (folder / "val.jsonl").write_text(json.dumps(record(1000, "bad")) + "\n")
        splits["val"] = {"records": "val.jsonl"}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"name": folder.name, "classes": list(classes), "splits": splits}))
    return str(manifest)


@pytest.fixture
def manifests(tmp_path: Path) -> tuple[list[str], str]:
    """With repeated ids, a record without content, classes in another order, and one domain without validation."""
    label = ["good", "bad"]
    twice = [record(7, "bad"), record(7, "good"), record(8, "bad", id="r7#2"), record(9, text=None), record(10)]
    one = domain(tmp_path / "hill", ["bad", "good"], [record(i, label[i % 2]) for i in range(9)], twice)
    two = domain(tmp_path / "town", ["good", "bad"], [record(i, label[i % 2]) for i in range(4)], val=False)
    sea = domain(tmp_path / "sea", ["bad", "good"], [record(i, None) for i in range(5)], [record(5, None)])
    return [one, two], sea


def as_read(corpus: Corpus) -> tuple[Any, ...]:
    return in_memory(corpus.table), corpus.classes, corpus.train, corpus.val, corpus.notes, corpus.labels.tolist()


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_corpus, "MOST_ROWS", 5)


def test_shards_hold_the_same_corpus(
    manifests: tuple[list[str], str], tmp_path: Path, everything_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, runs = load_corpus(*manifests), tmp_path / "runs"
    assert isinstance(table.table, pa.Table)
    shards = load_corpus(*manifests, runs=runs)
    assert isinstance(shards.table, ShardedTable)
    assert as_read(shards) == as_read(table)
    assert "hill, train: 3 repeated ids were numbered" in shards.notes
    (folder,) = (runs / ".rows").iterdir()  # and no unfinished one

    with monkeypatch.context() as patch:  # the next command finds them
        patch.setattr(corpus_module, "read_split", None)
        again = load_corpus(*manifests, runs=runs)
        assert as_read(again) == as_read(table) and data_hashes(again) == data_hashes(shards)

    pq.write_table(pa.Table.from_pylist([record(0, None)]), tmp_path / "sea" / "1.parquet")
    found = load_corpus(*manifests, runs=runs)  # not those of another file
    assert in_memory(found.table.slice(found.train[-1].start))["id"].to_pylist()[5] == "r0#2"
    before, after = data_hashes(shards), data_hashes(found)
    assert [name for name in after if after[name] != before[name]] == ["sea, split train"]
    assert len(list((runs / ".rows").iterdir())) == 2
    assert folder.is_dir()


def test_what_is_small_or_divided_is_a_table(
    manifests: tuple[list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    assert isinstance(load_corpus(*manifests, runs=runs).table, pa.Table)
    monkeypatch.setattr(large_corpus, "MOST_BYTES", 5)
    assert isinstance(load_corpus(*manifests, runs=runs).table, ShardedTable)
    file = Path(manifests[0][1])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"split": {"val": 0.25}}))
    assert isinstance(load_corpus(*manifests, runs=runs).table, pa.Table)


def test_a_bad_record_leaves_nothing(
    manifests: tuple[list[str], str], tmp_path: Path, everything_is_large: None
) -> None:
    pq.write_table(pa.Table.from_pylist([record(0, "awful")]), tmp_path / "sea" / "1.parquet")
    with pytest.raises(InputError, match="awful"):
        load_corpus(*manifests, runs=tmp_path / "runs")
    assert not (tmp_path / "runs" / ".rows").exists()


def test_shards_beside_runs_in_an_object_store(
    manifests: tuple[list[str], str], tmp_path: Path, everything_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = as_read(load_corpus(*manifests))
    with object_store("runs") as client:
        shards = load_corpus(*manifests, runs="s3://runs/all")
        assert as_read(shards) == wanted
        assert shards.table.take([20, 3]).equals(wanted[0].take([20, 3]).combine_chunks())
        with monkeypatch.context() as patch:
            patch.setattr(corpus_module, "read_split", None)
            assert as_read(load_corpus(*manifests, runs="s3://runs/all")) == wanted
        names = {item["Key"] for item in client.list_objects_v2(Bucket="runs")["Contents"]}
        pq.write_table(pa.Table.from_pylist([record(0, "awful")]), tmp_path / "sea" / "1.parquet")
        with pytest.raises(InputError, match="awful"):
            load_corpus(*manifests, runs="s3://runs/all")
        assert {item["Key"] for item in client.list_objects_v2(Bucket="runs")["Contents"]} - names <= {"all/.rows/"}


def test_where_shards_cannot_be_written(
    manifests: tuple[list[str], str], tmp_path: Path, everything_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the rows of the data cannot be written"):
        load_corpus(*manifests, runs=tmp_path / "file")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("refused")))
    with pytest.raises(InputError, match=r"the rows of the data cannot be written \(.*refused"):
        load_corpus(*manifests, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    monkeypatch.undo()
    monkeypatch.setattr(large_corpus, "MOST_ROWS", 5)
    monkeypatch.setattr(corpus_module, "read_shards", lambda folder: None)
    with pytest.raises(InputError, match="the rows of the data were removed meanwhile"):
        load_corpus(*manifests, runs=tmp_path / "runs")


def test_ids_are_numbered_as_if_each_was_looked_up() -> None:
    """Also where the user has such an id, and over batches."""
    ids = _UniqueIds()
    assert ids.claim(["a", "b"]) == ["a", "b"]
    assert ids.claim(["c", "a", "a", "a#2", "d", "b#2"]) == ["c", "a#2", "a#3", "a#2#2", "d", "b#2"]
    assert ids.claim(["b", "a", "a#3", "e"]) == ["b#3", "a#4", "a#3#2", "e"]
    assert ids.repeated == 6
    many = _UniqueIds()
    assert [many.claim([f"{k}-{i}" for i in range(100)])[0] for k in range(20)] == [f"{k}-0" for k in range(20)]
    assert many.claim(["7-3"]) == ["7-3#2"]
    assert len(many._used) < 10


def test_training_on_shards_has_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path)
    table = prepare(recipe)
    monkeypatch.setattr(large_corpus, "MOST_BYTES", 5)
    shards = prepare(recipe)
    assert isinstance(shards.corpus.table, ShardedTable)
    assert shards.card.vocabulary == table.card.vocabulary
    assert replace(shards.corpus, table=None).notes == replace(table.corpus, table=None).notes
    loops = make_loop(table), make_loop(shards)
    for _ in range(2):  # the second with pseudo labels
        wanted, found = (loop.run_epoch()[0] for loop in loops)
        for metrics in (wanted, found):
            for name in [name for name in metrics if name.startswith(("speed/", "time/"))]:
                del metrics[name]
        assert found == wanted
