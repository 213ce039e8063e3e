"""Keys at the wrong level and mappings the wrong way round are answered with the form that is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split

HEAD = "name: shop\nclasses: [low, high]\n"
SPLITS = "splits:\n  train: {records: r.csv}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.csv").write_text("caption,file,mood\nhello,a.jpg,Low\n")
    (tmp_path / "pics").mkdir()
    return tmp_path


def refusal(folder: Path, text: str) -> InputError:
    (folder / "m.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_manifest(folder / "m.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "field", "wanted"),
    [
        (SPLITS + "columns: {text: caption}", "columns", "`defaults: {columns: {text: caption}}` for all splits"),
        (SPLITS + "image_root: pics", "image_root", "`defaults: {image_root: pics}` for all splits"),
        (SPLITS + "text: caption", "text", "`defaults: {columns: {text: caption}}`"),
        ("records: r.csv", "records", "`splits: {train: {records: r.csv}}`"),
        ("splits: {train: r.csv}", "splits.train", "`splits: {train: {records: r.csv}}`"),
        ("splits: {train: {records: r.csv, text: caption}}", "splits.train.text", "`columns: {text: caption}` in"),
        (
            "splits: {train: {records: r.csv, columns: {caption: text, file: image}}}",
            "splits.train.columns.caption",
            "`columns: {text: caption, image: file}`",
        ),
        (SPLITS + "defaults: {columns: {caption: text}}", "defaults.columns.caption", "`columns: {text: caption}`"),
        (
            "splits: {train: {records: r.csv, columns: {image_root: pics}}}",
            "splits.train.columns.image_root",
            "`image_root: pics` in `splits.train`",
        ),
        (
            "splits: {train: {records: r.csv, labels: {Low: low}}}",
            "splits.train.labels",
            "`labels: {Low: low}` at the top",
        ),
        (
            "splits: {train: {records: r.csv, sample: 9}}",
            "splits.train.sample",
            "`data: {samples_per_epoch: 9}` in the recipe",
        ),
        (SPLITS + "labels: {low: Low, high: HIGH}", "labels.low", "`labels: {Low: low, HIGH: high}`"),
        (SPLITS + "labels: {Low: lwo}", "labels.Low", "one of low, high (nearest: low)"),
        (SPLITS + "labels: {yes: low}", "labels.True", "a string (in quotes)"),
        (SPLITS + "defaults: {image_root: gone}", "defaults.image_root", "a folder at"),
        (SPLITS + "defaults: {encoding: klingon}", "defaults.encoding", ""),
        (SPLITS + "defaults: {separator: '\\t'}", "defaults.separator", ""),
        (SPLITS + "split: {val: 1.5}", "split.val", "less than 1"),
    ],
)
def test_the_right_form_is_told(folder: Path, text: str, field: str, wanted: str) -> None:
    error = refusal(folder, HEAD + text)
    assert error.field == field
    assert wanted in (error.wanted or "")


def test_the_form_that_is_told_is_read(folder: Path) -> None:
    defaults = "defaults: {columns: {text: caption, image: file}, image_root: pics, separator: ','}\n"
    split = "splits:\n  train: {records: r.csv, columns: {label: mood}}\n"
    (folder / "m.yaml").write_text(HEAD + "labels: {Low: low}\n" + defaults + split)
    table = read_split(load_manifest(folder / "m.yaml"), "train").table
    assert table.to_pylist() == [
        {"id": "train-1", "domain": "shop", "texts": ["hello"], "images": [f"{folder}/pics/a.jpg"], "label": 0}
    ]


def test_a_split_of_class_folders_takes_no_picture_root_from_the_defaults(folder: Path) -> None:
    (folder / "pics" / "low").mkdir()
    (folder / "pics" / "low" / "a.jpg").write_bytes(b"x")
    splits = "splits:\n  train: {records: r.csv, columns: {text: caption}}\n  val: {records: pics, format: folders}\n"
    (folder / "m.yaml").write_text(HEAD + "defaults: {image_root: pics, columns: {image: file}}\n" + splits)
    assert read_split(load_manifest(folder / "m.yaml"), "val").table["images"].to_pylist() == [
        [f"{folder}/pics/low/a.jpg"]
    ]
