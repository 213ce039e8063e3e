"""Packing loses nothing but what was asked, and training reads either form with the same results."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datasets_manifest.checks.data_check import check
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing import pack as packing
from datasets_manifest.packing.pack import Packing, pack, unpack
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.picture_check import require_pictures
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream.encode import HostBatch
from datasets_manifest.stream.images import read_picture_bytes
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.picture_files import BadPicture
from trainers.compute.device_batches import make_encoding
from trainers.preflight.preparation import prepare
from trainers.recipe.demo import demo_recipe


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_postcards(tmp_path_factory.mktemp("cards"), seed=5, train=24, val=9)


def rows(manifest: Path, split: str) -> list[dict[str, Any]]:
    return read_split(load_manifest(manifest), split).table.to_pylist()


def digests(manifest: Path, split: str) -> list[list[str]]:
    return [[hashlib.sha256(read_picture_bytes(p)).hexdigest() for p in row["images"]] for row in rows(manifest, split)]


def test_pack_and_unpack_keep_every_byte(manifests: dict[str, Path], tmp_path: Path) -> None:
    original = manifests["city"]
    found = pack(load_manifest(original), tmp_path / "packed", Packing())
    again = unpack(load_manifest(found.manifest), tmp_path / "unpacked")
    assert (found.records, found.bad, found.bytes_before) == (33, 0, found.bytes_after)
    for split in ("train", "val"):
        for form in (found.manifest, again):
            for name in ("id", "texts", "label"):
                assert [r[name] for r in rows(form, split)] == [r[name] for r in rows(original, split)]
            assert digests(form, split) == digests(original, split)
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == [
        "manifest.yaml", "shards", "train.parquet", "val.parquet",
    ]  # fmt: skip


def test_training_reads_the_same(manifests: dict[str, Path], tmp_path: Path) -> None:
    forms = [
        list(manifests.values()),
        [pack(load_manifest(path), tmp_path / name, Packing()).manifest for name, path in manifests.items()],
    ]
    batches: list[list[HostBatch]] = []
    for form in forms:
        run = prepare(demo_recipe(dict(zip(manifests, form, strict=True)), ["uacr.warmup=1"]))
        encoding = make_encoding(run.recipe, run.card.vocabulary, epoch=1, strong=True)
        numbers = [np.arange(start, start + 12) for start in (0, 40)]
        batches.append(list(LocalStream(run.corpus.table).evaluate(numbers, encoding)))
    for plain, packed in zip(*batches, strict=True):
        assert len(plain.pictures)
        for name in ("tokens", "mask", "pictures", "owner"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(packed, name))


def test_larger_pictures_are_reduced(manifests: dict[str, Path], tmp_path: Path) -> None:
    found = pack(load_manifest(manifests["seaside"]), tmp_path / "packed", Packing(shorter_side=48))
    for row in rows(found.manifest, "train"):
        for path in row["images"]:
            data = read_picture_bytes(path)
            assert data.startswith(b"\xff\xd8")
            assert min(Image.open(io.BytesIO(data)).size) == 48
    assert found.bytes_after < found.bytes_before


def test_an_interrupted_packing_goes_on(
    manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "RECORDS_A_SHARD", 10)
    manifest, out = load_manifest(manifests["city"]), tmp_path / "packed"
    done: list[str] = []
    real = packing._pack_part

    def dies(table: Any, m: Any, split: str, shard: Path, *rest: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(shard.name)
        real(table, m, split, shard, *rest)

    monkeypatch.setattr(packing, "_pack_part", dies)
    with pytest.raises(KeyboardInterrupt):
        pack(manifest, out, Packing())
    assert not (out / "manifest.yaml").exists()
    with pytest.raises(InputError, match="something else"):
        pack(manifest, out, Packing(shorter_side=40))
    written = {path.name: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    monkeypatch.setattr(packing, "_pack_part", real)
    found = pack(manifest, out, Packing())
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in written} == written
    assert digests(found.manifest, "train") == digests(manifests["city"], "train")
    with pytest.raises(InputError, match="not empty"):
        pack(manifest, out, Packing())


def test_altered_shards_and_lost_pictures_are_bad_pictures(manifests: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(manifests["city"].parent, source)
    first = rows(source / "manifest.yaml", "train")[0]["images"][0]
    Path(first).unlink()
    found = pack(load_manifest(source / "manifest.yaml"), tmp_path / "packed", Packing())
    assert found.bad == 1
    lost, kept = (row["images"][0] for row in rows(found.manifest, "train")[:2])
    with pytest.raises(BadPicture, match="missing"):
        read_picture_bytes(lost)
    shard = tmp_path / "packed" / "shards" / "train-00000.shard"
    content = bytearray(shard.read_bytes())
    content[int(kept.partition("#")[2].partition("+")[0])] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadPicture, match="unreadable"):
        read_picture_bytes(kept)
    others = [manifests["seaside"], manifests["mountain"]]
    corpus = load_corpus([str(others[0]), str(found.manifest)], str(others[1]))
    assert "1 of 24 records lack a picture file" in require_pictures(corpus, 0.1)[0]
    assert isinstance(corpus.table, pa.Table)


def test_packing_counts_the_pictures_bad_that_the_check_does(tmp_path: Path) -> None:
    contents = {
        "cut.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "page.jpg": b"<!doctype html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    records = [{"text": "a", "image": [*contents, "gone.jpg"], "label": n} for n in (0, 1)]
    (tmp_path / "r.json").write_text(json.dumps(records))
    (tmp_path / "m.json").write_text(
        json.dumps({"name": "t", "classes": ["a", "b"], "splits": {"train": {"records": "r.json"}}})
    )
    manifest = load_manifest(tmp_path / "m.json")
    found = {f.kind: f.count for f in check([manifest]).findings}
    assert found["truncated"] == found["not-read-here"] == found["not-an-image"] == found["missing"] == 2
    for number, side in enumerate((None, 64)):
        assert pack(manifest, tmp_path / f"packed{number}", Packing(side)).bad == 8
