"""Manifests, records and pictures in an object store, read through a server in this process."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing.pack import Packing, pack
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.picture_check import require_pictures
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream import images
from datasets_manifest.stream.encode import Encoding, Vocabulary, encode_samples, index_table
from datasets_manifest.stream.picture_files import BadPicture
from datasets_manifest.stream.text import build_tokenizer
from tests.object_store import object_store

Put = Callable[[str, bytes], None]
CLASSES = ["low", "high"]


@pytest.fixture(scope="module")
def s3() -> Iterator[Put]:
    """An empty bucket `photos`; puts objects into it."""
    with object_store("photos") as client:
        yield lambda key, content: client.put_object(Bucket="photos", Key=key, Body=content)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put_set(put: Put, folder: str, name: str, records: bytes, file: str, **split: Any) -> str:
    if records:
        put(f"{folder}/{file}", records)
    content = {"name": name, "classes": CLASSES, "splits": {"train": {"records": file, **split}}}
    put(f"{folder}/manifest.yaml", yaml.safe_dump(content).encode())
    return f"s3://photos/{folder}/manifest.yaml"


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_a_set_in_a_bucket_reads_as_a_local_one(s3: Put) -> None:
    records = lines({"image": "p/a b#1.png", "label": "low"}, {"image": "p/ü%20.png", "label": "high"})
    for number, name in enumerate(["a b#1", "ü%20"]):
        s3(f"one/p/{name}.png", picture(100 * number))
    one = put_set(s3, "one", "one", gzip.compress(records), "train.jsonl.gz")
    table = pa.table({"image": ["p/a b#1.png", "gone.png"], "label": ["low", "high"]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    two = put_set(s3, "two", "two", buffer.getvalue(), "train.parquet", image_root="s3://photos/one")
    corpus = load_corpus([one], two)
    assert corpus.table["images"].to_pylist() == [
        ["s3://photos/one/p/a b#1.png"],
        ["s3://photos/one/p/ü%20.png"],
        ["s3://photos/one/p/a b#1.png"],
        ["s3://photos/one/gone.png"],
    ]
    assert corpus.labels.tolist() == [0, 1, 0, 1]
    data = images.read_picture_bytes("s3://photos/one/p/ü%20.png")
    assert images.decode_views(data, images.PictureViews(resize=8, crop=8), None)[0].mean() == 100
    with pytest.raises(BadPicture, match="missing"):
        images.read_picture_bytes("s3://photos/one/gone.png")
    assert "1 of 2 records" in require_pictures(corpus, 0.5)[0]
    with pytest.raises(InputError, match=r"s3://photos/one/gone\.png"):
        require_pictures(corpus, 0.05)


def test_templates_and_class_folders_in_a_bucket(s3: Put) -> None:
    for k in (1, 3):
        s3(f"tweets/data/a/ab-{k}.jpg", picture(k))
    template = "data/{folder}/{folder}{stem}-{k}.jpg"
    records = lines({"image": "a/b.jpg", "label": 0}, {"image": "a/c.jpg", "label": 1})
    path = put_set(s3, "tweets", "tweets", records, "train.jsonl", image_template=template)
    assert read_split(load_manifest(path), "train").table["images"].to_pylist() == [
        ["s3://photos/tweets/data/a/ab-1.jpg", "s3://photos/tweets/data/a/ab-3.jpg"],
        ["s3://photos/tweets/data/a/ac-1.jpg"],
    ]
    for key in ("high/x.png", "high/x.txt", "low/y.png", "z.png"):
        s3(f"tree/pictures/{key}", b"words" if key.endswith("txt") else picture(1))
    path = put_set(s3, "tree", "tree", b"", "pictures", format="folders")
    table = read_split(load_manifest(path), "train").table
    assert table["id"].to_pylist() == ["high/x.png", "low/y.png", "z.png"]
    assert table["texts"].to_pylist() == [["words"], [], []]
    assert table["label"].to_pylist() == [1, 0, -1]
    assert table["images"].to_pylist()[0] == ["s3://photos/tree/pictures/high/x.png"]


@pytest.mark.parametrize(
    "path", ["../one/a.png", "a/../../b.png", "/etc/passwd", "s3://photos/x.png", "S3://other/x.png", "../../../x.png"]
)
def test_records_in_a_bucket_stay_below_the_image_root(s3: Put, path: str) -> None:
    place = put_set(s3, "held", "held", lines({"image": path}), "train.jsonl")
    with pytest.raises(InputError) as caught:
        read_split(load_manifest(place), "train")
    assert (caught.value.field, caught.value.value) == ("line 1, image", path)
    place = put_set(
        s3, "held", "held", lines({"image": path}), "train.jsonl", allow_absolute=True, allow_outside_root=True
    )
    [[found]] = read_split(load_manifest(place), "train").table["images"].to_pylist()
    assert ".." not in found


def test_places_that_cannot_be_read_are_named(s3: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_manifest("s3://photos/no/manifest.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_manifest("s3://photos")
    with pytest.raises(InputError, match="not a location that can be read"):
        load_manifest("https://host/manifest.yaml")
    content = {"name": "a", "classes": CLASSES, "splits": {"train": {"records": "s3://photos/none.json"}}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path / "m.yaml")
    assert (caught.value.field, caught.value.problem) == ("splits.train.records", "no such file")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError) as caught:
        load_manifest(tmp_path / "m.yaml")
    assert caught.value.problem.startswith("cannot be reached")
    with pytest.raises(InputError, match="cannot be read"):
        load_manifest("s3://photos/one/manifest.yaml")
    with pytest.raises(BadPicture, match="unreadable"):
        images.read_picture_bytes("s3://photos/one/p/a.png")


def test_a_uri_keeps_its_bucket_whatever_climbs() -> None:
    assert storage.normalise("s3://b/x/../../../y//z") == "s3://b/y/z"
    assert storage.locate("s3://b/x", "../y.json") == "s3://b/y.json"
    assert storage.parent("s3://b/x/m.yaml") == "s3://b/x"
    with pytest.raises(InputError, match="local path"):
        storage.locate("s3://b/x", "/etc/passwd")


def test_the_encode_task_reads_pictures_by_uri(s3: Put) -> None:
    s3("encode/a.png", picture(7))
    s3("encode/bad.png", b"no picture")
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    json_ = build_tokenizer(["a"])
    encoding = Encoding(
        pictures=images.PictureViews(resize=8, crop=8),
        cleaning="none",
        form="plain",
        max_tokens=8,
        word_dropout=0.0,
        vocabulary=Vocabulary(json=json_, pad_id=0, size=8, **specials),
    )
    samples: list[list[str | bytes]] = [
        ["s3://photos/encode/a.png", picture(9)],
        ["s3://photos/encode/bad.png", "s3://photos/encode/gone.png"],
    ]
    numbers = np.arange(2)
    encoded = encode_samples([["a"], ["a"]], samples, index_table(numbers, numbers, numbers), encoding)
    assert encoded["num_pictures"].to_pylist() == [2, 0]
    shades = np.frombuffer(encoded["pictures_weak"][0].as_py(), np.uint8).reshape(2, -1)
    assert shades.mean(axis=1).tolist() == [7, 9]
    assert encoded["bad"].to_pylist()[1] == [
        "s3://photos/encode/bad.png: not an image",
        "s3://photos/encode/gone.png: missing",
    ]


def test_a_packed_data_set_is_read_by_range(s3: Put, tmp_path: Path) -> None:
    original = write_postcards(tmp_path / "cards", seed=2, train=9, val=3)["city"]
    packed = pack(load_manifest(original), tmp_path / "packed", Packing()).manifest.parent
    for file in packed.rglob("*"):
        if file.is_file():
            s3(f"packed/{file.relative_to(packed).as_posix()}", file.read_bytes())
    remote = read_split(load_manifest("s3://photos/packed/manifest.yaml"), "train").table.to_pylist()
    local = read_split(load_manifest(original), "train").table.to_pylist()
    assert [row["id"] for row in remote] == [row["id"] for row in local]
    for there, here in zip(remote, local, strict=True):
        found = [images.read_picture_bytes(path) for path in there["images"]]
        assert found == [Path(path).read_bytes() for path in here["images"]]
    assert "/shards/train-00000.shard#" in remote[0]["images"][0]
