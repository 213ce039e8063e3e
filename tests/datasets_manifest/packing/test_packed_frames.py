"""Frames written as data sets: read back, they hold what the frames held."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing import frames as writing
from datasets_manifest.packing.frames import classes_of, splits_of, write_domain
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream.images import read_picture_bytes
from tests.datasets_manifest.hub_dataset import Dataset

CLASSES = ["neg", "pos"]


def jpeg(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey,) * 3).save(file, format="JPEG")
    return file.getvalue()


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_ROWS_A_SHARD", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jpg").write_bytes(jpeg(1))
    image = Image.new("RGB", (8, 8), "red")
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "text": ["one", ["two", "three"], None],
            "image": ["there.jpg", [image, jpeg(2)], {"bytes": jpeg(3), "path": "elsewhere.jpg"}],
            "label": ["pos", None, "neg"],
        }
    )
    manifest = load_manifest(write_domain("shop", {"train": frame, "val": frame[:1]}, CLASSES, tmp_path / "shop"))
    rows = read_split(manifest, "train").table.to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["texts"] for row in rows] == [["one"], ["two", "three"], []]
    assert [row["label"] for row in rows] == [1, -1, 0]
    found = [[read_picture_bytes(path) for path in row["images"]] for row in rows]
    assert (found[0], found[1][1], found[2]) == ([jpeg(1)], jpeg(2), [jpeg(3)])
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(found[1][0]))), np.array(image))
    assert rows[0]["images"] == [str(tmp_path / "there.jpg")]
    assert read_split(manifest, "val").table["id"].to_pylist() == ["a"]
    assert len(list((tmp_path / "shop" / "shards").iterdir())) == 2


def test_the_hub_s_datasets_are_written_in_parts_with_their_class_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_ROWS_A_SHARD", 3)
    columns = {
        "text": [f"text {n}" for n in range(10)],
        "image": [{"bytes": jpeg(n), "path": None} for n in range(10)],
        "label": [0, 1] * 4 + [-1, -1],
    }
    train = Dataset(columns, names=CLASSES)
    splits = splits_of("hub", {"train": train, "validation": Dataset({"text": ["a"], "label": [1]}, names=CLASSES)})
    assert list(splits) == ["train", "val"] and classes_of({"hub": splits}) == CLASSES
    manifest = load_manifest(write_domain("hub", splits, CLASSES, tmp_path / "hub"))
    table = read_split(manifest, "train").table
    assert table["label"].to_pylist() == [0, 1] * 4 + [-1, -1]
    assert read_picture_bytes(table["images"].to_pylist()[9][0]) == jpeg(9)
    assert train.longest_slice == 3


def test_one_frame_is_divided_and_its_labels_are_the_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(40)], "label": [5, 1] * 20})
    splits = splits_of("stars", frame)
    assert classes_of({"stars": splits}) == ["1", "5"]
    manifest = load_manifest(write_domain("stars", splits, ["1", "5"], tmp_path / "stars"))
    train, val = (read_split(manifest, split).table for split in ("train", "val"))
    assert (train.num_rows, val.num_rows) == (34, 6)
    assert sorted(val["label"].to_pylist()) == [0] * 3 + [1] * 3
    assert read_split(manifest, "train").absent["image"] is None  # training says that there are no pictures


@pytest.mark.parametrize(
    ("name", "frame", "words"),
    [
        (
            "shop",
            pd.DataFrame({"text": ["a", "b"], "label": ["pos", "pso"]}),
            "shop, train, row 2, label: no such class",
        ),
        ("shop", pd.DataFrame({"text": ["a", 7], "label": ["pos", "neg"]}), "shop, train, row 2, text: is not a text"),
        ("shop", pd.DataFrame({"label": ["pos"]}), "neither a column of texts nor of pictures"),
        ("shop", pd.DataFrame({"text": ["a"], "images": ["b.jpg"]}), "nearest: 'images'"),
        ("shop", pd.DataFrame({"text": []}), "shop, train: has no row"),
        ("my shop", pd.DataFrame({"text": ["a"]}), "name: wrong value"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, frame: pd.DataFrame, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        write_domain(name, {"train": frame}, CLASSES, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(InputError, match="shop, train: is not a frame; found 'list'"):
        splits_of("shop", ["a", "b"])
