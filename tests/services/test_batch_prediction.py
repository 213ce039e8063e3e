"""Batch inference: one row for each record, the same numbers as one process, resumable, bad rows marked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets_manifest.disk import CannotWrite
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from services import batch_prediction as inference
from tests.services.registered import Registered
from tests.small_disk import SMALL_DISK, small_disk
from trainers.model.predictor import Predictor


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A manifest with 30 records: a picture of the first is damaged, the second has nothing but such a one, and there
    is one more record that is empty."""
    manifest = write_postcards(tmp_path / "cards", seed=5, train=30, val=12)["mountain"]
    file = manifest.parent / "train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records[:2]:
        (manifest.parent / record["image"][0]).write_bytes(b"no picture")
    records[0]["text"] = records[0]["text"] or ["some words"]
    records[1] |= {"text": [], "image": records[1]["image"][:1]}
    records.insert(2, {"id": "empty", "text": [], "image": []})
    file.write_text("\n".join(map(json.dumps, records)) + "\n")
    return manifest


def test_every_record_has_one_row_and_bad_ones_are_marked(
    registered: Registered, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(inference, "SHARD_ROWS", 31)  # one shard: the actors do not see the patch, only its size
    out = tmp_path / "out"
    summary = inference.predict_manifest(registered.bundles[0], spoilt, out, split="train", workers=2)
    table = pq.read_table(out / "predictions.parquet")
    assert (summary.records, summary.bad, summary.resumed) == (31, 2, 0)
    assert summary.with_bad_pictures == 2
    assert json.loads((out / "summary.json").read_text()) == vars(summary)
    rows = table.to_pylist()
    assert rows[1]["label"] is None and "no picture can be read" in rows[1]["problem"]
    assert rows[2]["id"] == "empty" and rows[2]["problem"] == "has neither text nor picture"
    assert len(rows[0]["bad_pictures"]) == 1 and "left out" in rows[0]["problem"]
    kept = read_split(load_manifest(spoilt), "train").table
    single = Predictor.load(registered.bundles[0]).predict(kept["texts"].to_pylist(), kept["images"].to_pylist())
    probs = dict(zip(kept["id"].to_pylist(), single.probs, strict=True))
    for row in rows:
        if row["label"] is not None:
            found = [row[f"prob_{name}"] for name in ("negative", "neutral", "positive")]
            np.testing.assert_allclose(found, probs[row["id"]], atol=1e-5)
            assert len(row["head_labels"]) == 2
            assert (row["disagreement"] >= 0) and row["confidence"] == pytest.approx(max(found))


def test_a_full_disk_ends_it_with_a_line_and_it_goes_on_after_that(
    registered: Registered, tmp_path: Path, ray_cluster: None
) -> None:
    with small_disk(tmp_path / "disk", SMALL_DISK) as remount:
        out = tmp_path / "disk" / "out"
        filling = tmp_path / "disk" / "filling"
        out.mkdir()
        filling.write_bytes(bytes(SMALL_DISK - 8192))  # room for the plan, not for a part
        with pytest.raises(CannotWrite, match=r"No space left on device.* make room in .*disk/out"):
            inference.predict_manifest(registered.bundles[0], registered.manifest, out, split="train")
        assert not list(out.rglob("*.parquet"))
        filling.unlink()
        remount(f"size={2**20}")
        summary = inference.predict_manifest(registered.bundles[0], registered.manifest, out, split="train")
        assert summary.records == pq.read_table(out / "predictions.parquet").num_rows > 0


def test_a_prediction_goes_on_where_it_was_cut_off(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(inference, "SHARD_ROWS", 10)
    predictor = Predictor.load(registered.bundles[0])
    asked: list[list[int]] = []

    def in_this_process(bundle: Path, table: object, out: Path, shards: list[int], workers: int) -> object:
        """In place of the actors: dies after two shards the first time."""
        asked.append(shards)
        for shard in shards:
            if len(asked) == 1 and shard == 2:
                raise KeyboardInterrupt
            part = inference.predict_rows(predictor, table.slice(shard * 10, 10))  # type: ignore[attr-defined]
            inference.write_predictions(part, inference._part(out, shard))
            yield part.num_rows

    monkeypatch.setattr(inference, "_run_actors", in_this_process)
    arguments = (registered.bundles[0], registered.manifest, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        inference.predict_manifest(*arguments, split="train")
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    summary = inference.predict_manifest(*arguments, split="train")
    assert asked == [[0, 1, 2], [2]]
    assert (summary.records, summary.resumed) == (30, 20)
    again = inference.predict_manifest(*arguments, split="train")
    assert (again.records, again.resumed, len(asked)) == (30, 30, 2)
    with pytest.raises(InputError, match="holds a prediction with another model"):
        inference.predict_manifest(registered.bundles[1], *arguments[1:], split="train")
    with pytest.raises(InputError, match="is not empty"):
        inference.predict_manifest(registered.bundles[0], registered.manifest, tmp_path, split="train")
