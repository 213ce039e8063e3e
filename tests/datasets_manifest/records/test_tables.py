"""CSV as people have it: separators, encodings, lists of pictures in a cell, blanks around quotes, long cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import ReadResult, read_split
from tests.datasets_manifest.reading import CLASSES, column, read, refusal

TABLE = 'id,text,label,image\nk1,"Café, noël",positive,a.jpg|b.jpg\nk2,Straße,,\n'
WANTED = {"id": ["k1", "k2"], "texts": [["Café, noël"], ["Straße"]], "label": [2, -1]}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_separator_and_encoding_are_found(tmp_path: Path, separator: str, encoding: str, name: str) -> None:
    import gzip

    content = TABLE.replace(",", separator).replace(f"Café{separator}", "Café,").encode(encoding)
    result = read(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert {key: column(result, key) for key in WANTED} == WANTED
    assert column(result, "images") == [[f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"], []]
    assert ["cp1252" in note for note in result.notes] == ([True] if encoding == "cp1252" else [])


def test_separator_and_encoding_may_be_stated(tmp_path: Path) -> None:
    content = "text~label\nŁódź, it says~0\n".encode("cp1250")
    result = read(tmp_path, "r.csv", content, separator="~", encoding="cp1250")
    assert (column(result, "texts"), result.notes) == ([["Łódź, it says"]], ())
    assert column(read(tmp_path, "r.json", '[{"text": "é"}]'.encode("utf-16"), encoding="utf-16"), "texts") == [["é"]]
    error = refusal(tmp_path, "r.csv", b"text\ncaf\xe9\n", encoding="utf-8")
    assert (error.field, error.problem) == ("line 2", "not utf-8: byte 0xe9")


def test_a_comma_stays_the_separator_where_it_was(tmp_path: Path) -> None:
    assert column(read(tmp_path, "r.csv", "text,a;b\nx;y,1\n"), "texts") == [["x;y"]]
    assert column(read(tmp_path, "r.csv", "text\nx;y\n"), "texts") == [["x;y"]]


def test_columns_of_another_separator_are_shown(tmp_path: Path) -> None:
    error = refusal(tmp_path, "r.csv", "heading;bild\nx;y\n")
    assert (error.problem, error.value) == ("neither texts nor images", "heading, bild")
    error = refusal(tmp_path, "r.csv", "caption;bild\nx;y\n", columns={"text": "captoin"})
    assert "(nearest: caption)" in str(error.wanted)


@pytest.mark.parametrize(
    ("cell", "settings", "wanted"),
    [
        ('"[""a.jpg"", ""b, c.jpg""]"', {}, ["a.jpg", "b, c.jpg"]),
        ("\"['a.jpg', 'b.jpg']\"", {}, ["a.jpg", "b.jpg"]),
        ("[]", {}, []),
        ("[a].jpg", {}, ["[a].jpg"]),
        ("[a]", {}, ["[a]"]),
        ("a.jpg ; b|c.jpg;", {"image_separator": ";"}, ["a.jpg", "b|c.jpg"]),
        ("a.jpg||b.jpg", {"image_separator": "||"}, ["a.jpg", "b.jpg"]),
    ],
)
def test_several_pictures_in_a_cell(tmp_path: Path, cell: str, settings: dict[str, str], wanted: list[str]) -> None:
    result = read(tmp_path, "r.csv", f"text,image\nx,{cell}\n", **settings)
    assert column(result, "images") == [[f"{tmp_path}/{name}" for name in wanted]]


def test_pandas_own_csv_of_lists_is_read(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["x", None], "image": [["a.jpg", "it's.jpg"], ["c.jpg"]]}).to_csv(tmp_path / "r.csv")
    result = read(tmp_path, "r.csv", (tmp_path / "r.csv").read_bytes())
    assert column(result, "images") == [[f"{tmp_path}/a.jpg", f"{tmp_path}/it's.jpg"], [f"{tmp_path}/c.jpg"]]


def test_a_separator_in_json_splits_only_where_it_is_stated(tmp_path: Path) -> None:
    records = [{"image": "a|b.jpg"}]
    assert column(read(tmp_path, "r.json", records), "images") == [[f"{tmp_path}/a|b.jpg"]]
    assert column(read(tmp_path, "r.json", records, image_separator="|"), "images") == [
        [f"{tmp_path}/a", f"{tmp_path}/b.jpg"]
    ]


def test_blanks_after_all_separators_belong_to_them(tmp_path: Path) -> None:
    result = read(tmp_path, "r.csv", 'id, text, image, label\n1, "hi, there", a.jpg, positive\n')
    assert (column(result, "texts"), column(result, "label")) == ([["hi, there"]], [2])
    assert column(read(tmp_path, "r.csv", "id, text\n1, hi\n"), "texts") == [[" hi"]]
    assert column(read(tmp_path, "r.csv", 'id,text\n1, "Great" she said\n'), "texts") == [[' "Great" she said']]


def test_long_cells_are_read(tmp_path: Path) -> None:
    assert [len(text) for (text,) in column(read(tmp_path, "r.csv", f"text\n{'x' * 200_000}\n"), "texts")] == [200_000]


def read_manifest(folder: Path, table: str, part: str = "train", **manifest: Any) -> ReadResult:
    (folder / "r.csv").write_text(table, encoding="utf-8")
    content = {"name": "cards", "classes": CLASSES, "splits": {"train": {"records": "r.csv"}}} | manifest
    (folder / "manifest.json").write_text(json.dumps(content))
    return read_split(load_manifest(folder / "manifest.json"), part)


def test_labels_are_mapped_by_the_manifest(tmp_path: Path) -> None:
    labels = {"POS": "positive", "N/A": None, "5": "positive", "1": "negative"}
    table = "text,label\n" + "".join(
        f"{n},{value}\n" for n, value in enumerate(["POS", " N/A ", "5", "1.0", "neutral"])
    )
    assert column(read_manifest(tmp_path, table, labels=labels), "label") == [2, -1, 2, 0, 1]
    (tmp_path / "m.yaml").write_text(
        "name: a\nclasses: ['2', '1']\nlabels: {1: '1', 3: '2'}\nsplits: {train: {records: r.json}}\n"
    )
    (tmp_path / "r.json").write_text(json.dumps([{"text": "x", "label": value} for value in (1, 3, 1.0, "2", "3.0")]))
    assert column(read_split(load_manifest(tmp_path / "m.yaml"), "train"), "label") == [1, 0, 1, 0, 0]


def test_composed_and_decomposed_labels_are_one(tmp_path: Path) -> None:
    for written, found in (("n\u00e9gatif", "ne\u0301gatif"), ("ne\u0301gatif", "n\u00e9gatif")):
        records = [{"text": "x", "label": found}]
        assert column(read(tmp_path, "r.json", records, classes=["positif", written]), "label") == [1]


def test_all_bad_labels_are_counted(tmp_path: Path) -> None:
    table = "text,label\n" + "a,positive\n" + "b,POS\n" * 3 + "c,meh\n"
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path, table)
    assert caught.value.problem == "no such class; 4 records have such labels: 'POS' (3), 'meh' (1)"
    assert (caught.value.field, caught.value.value) == ("line 3, label", "POS")
    error = refusal(tmp_path, "r.json", [{"text": "x", "label": "Positive"}])
    assert "upper and lower case differ: `labels: {Positive: positive}` maps it" in str(error.wanted)


def test_absent_columns_are_told_with_the_nearest(tmp_path: Path) -> None:
    result = read(tmp_path, "r.jsonl", [{"text": "x"}, {"text": "y", "images": ["a.jpg"]}])
    assert result.absent == {"image": "images", "label": None}
    assert read(tmp_path, "r.jsonl", [{"text": "x", "image": "a", "label": 0}]).absent == {}


ROWS = [f"{n},text {n},{CLASSES[0 if n % 10 else 1]}" for n in range(200)]


def test_one_file_is_divided(tmp_path: Path) -> None:
    table = "\n".join(["id,text,label", *ROWS, *ROWS[:20], "e,,"])
    divided = {"split": {"val": 0.2, "seed": 1, "stratify": True}}
    train, val = (read_manifest(tmp_path, table, name, **divided) for name in ("train", "val"))
    ids = column(train, "id") + column(val, "id")
    assert len(ids) == len(set(ids)) == 220
    assert column(val, "id") == [
        each for each in column(read_manifest(tmp_path, table), "id") if each in column(val, "id")
    ]
    assert not {str(text) for text in column(train, "texts")} & {str(text) for text in column(val, "texts")}
    texts = {text: label for (text,), label in zip(column(val, "texts"), column(val, "label"), strict=True)}
    assert (list(texts.values()).count(0), list(texts.values()).count(1)) == (36, 4)
    assert (train.without_content, val.without_content) == (1, 0)
    again = read_manifest(tmp_path, table, "val", **divided)
    assert again.table.equals(val.table)
    other = read_manifest(tmp_path, table, "val", split={"val": 0.2, "seed": 2})
    assert not other.table.equals(val.table)
    assert read_manifest(tmp_path, table, "val", split={"val": 0.2, "stratify": False}).table.num_rows > 30


def test_a_division_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split\.val: leaves no record for val"):
        read_manifest(tmp_path, "text,label\na,0\nb,1\n", "val", split={"val": 0.2})
    splits = {"train": {"records": "r.csv"}, "val": {"records": "r.csv"}}
    with pytest.raises(InputError, match="split: does not go with these splits"):
        read_manifest(tmp_path, "text\na\n", split={"val": 0.2}, splits=splits)
