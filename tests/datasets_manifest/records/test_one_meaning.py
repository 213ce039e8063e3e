"""The same thing in two spellings is read alike; what could mean two things is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records import readers
from datasets_manifest.records.class_sets import remap_labels, require_same_classes
from datasets_manifest.records.readers import read_split
from tests.datasets_manifest.reading import column, read, refusal

COMPOSED, APART = "n\u00e9gatif", "ne\u0301gatif"


@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.jsonl", "r.parquet"])
@pytest.mark.parametrize(("stated", "stored"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_column_names_are_composed_either_way(tmp_path: Path, name: str, stated: str, stored: str) -> None:
    records = [{stored: "one", "label": "neutral"}, {stored: "two", "label": "positive"}]
    content: Any = records
    if name.endswith(".csv"):
        content = f"{stored},label\none,neutral\ntwo,positive\n"
    elif name.endswith(".parquet"):
        content = pa.Table.from_pylist(records)
    result = read(tmp_path, name, content, columns={"text": stated})
    assert column(result, "texts") == [["one"], ["two"]]
    assert column(result, "label") == [1, 2]
    assert set(result.absent) == {"image"}


@pytest.mark.parametrize(("written", "stored"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_file_names_are_composed_either_way(tmp_path: Path, written: str, stored: str) -> None:
    folder = tmp_path / f"photos {stored}"
    folder.mkdir()
    (folder / f"{stored}.png").write_bytes(b"x")
    (tmp_path / f"{stored}.json").write_text(json.dumps([{"image": f"{written}.png"}]))
    split = {"records": f"{written}.json", "image_root": f"photos {written}"}
    manifest = {"name": "t", "classes": ["a", "b"], "splits": {"train": split}}
    (tmp_path / f"{stored}.yaml").write_text(json.dumps(manifest))
    table = read_split(load_manifest(tmp_path / f"{written}.yaml"), "train").table
    assert table["images"].to_pylist() == [[str(folder / f"{stored}.png")]]
    both = read(tmp_path, "r.json", [{"image": [f"{written}.png", "n\u00e9.png"]}], image_root=f"photos {written}")
    assert column(both, "images") == [[str(folder / f"{stored}.png"), str(folder / "n\u00e9.png")]]


def test_class_folders_and_their_texts_are_composed_either_way(tmp_path: Path) -> None:
    for folder in (APART, "positif"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / f"{COMPOSED}.png").write_bytes(b"x")
        (tmp_path / "set" / folder / f"{APART}.txt").write_text("words")
    split = {"records": "set", "format": "folders"}
    (tmp_path / "m.json").write_text(
        json.dumps({"name": "t", "classes": [COMPOSED, "positif"], "splits": {"train": split}})
    )
    table = read_split(load_manifest(tmp_path / "m.json"), "train").table
    assert sorted(zip(table["label"].to_pylist(), table["texts"].to_pylist(), strict=True)) == [
        (0, ["words"]),
        (1, ["words"]),
    ]


def test_class_names_of_two_domains_are_composed_either_way(tmp_path: Path) -> None:
    manifests = []
    for name, label in (("one", COMPOSED), ("two", APART)):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"text": "a", "label": COMPOSED}]))
        content = {"name": name, "classes": ["positif", label], "labels": {"-": APART}}
        content["splits"] = {"train": {"records": f"{name}.json"}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
        manifests.append(load_manifest(tmp_path / f"{name}.yaml"))
    require_same_classes(manifests)
    table = read_split(manifests[1], "train").table
    assert remap_labels(table, manifests[1].classes, [COMPOSED, "positif"])["label"].to_pylist() == [0]


def test_nan_is_null_in_every_column(tmp_path: Path) -> None:
    lines = '{"id": NaN, "text": "a", "image": NaN, "label": NaN}\n{"id": 17.0, "text": ["b", NaN], "image": [NaN]}\n'
    result = read(tmp_path, "r.jsonl", lines)
    assert column(result, "id") == ["train-1", "17"]
    assert column(result, "texts") == [["a"], ["b"]]
    assert column(result, "images") == [[], []]
    assert column(result, "label") == [-1, -1]
    table = pa.table(
        {"id": pa.array([1.0, float("nan"), None]), "text": ["a", "b", "c"], "label": [0.0, float("nan"), None]}
    )
    result = read(tmp_path, "r.parquet", table)
    assert column(result, "id") == ["1", "train-2", "train-3"]
    assert column(result, "label") == [0, -1, -1]


def test_parquet_with_string_views_is_read(tmp_path: Path) -> None:
    table = pa.table(
        {"text": pa.array(["a", "b"], pa.string_view()), "label": pa.array(["neutral", None], pa.string_view())}
    )
    assert column(read(tmp_path, "r.parquet", table), "label") == [1, -1]


@pytest.mark.parametrize(
    ("name", "content", "field", "says"),
    [
        ("r.csv", "id,text,label\n1,a,neutral\n\ufeffid,text,label\n2,b,neutral\n", "line 3", "byte order mark"),
        ("r.csv", "id,text,label\n1,a,neutral\nid,text,label\n2,b,neutral\n", "line 3", "the header stands here again"),
        ("r.tsv", "id\ttext\n1\ta\n id \ttext\n", "line 3", "the header stands here again"),
        ("r.jsonl", '{"text": "a"}\n\ufeff{"text": "b"}\n', "line 2", "BOM"),
        ("r.jsonl", f'{{"text": "a", "{COMPOSED}": 1, "{APART}": 2}}\n', "line 1", "is written twice"),
        ("r.csv", f"text,{COMPOSED},{APART}\na,b,c\n", "column " + COMPOSED, "two columns of one name"),
    ],
)
def test_what_could_mean_two_things_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str, field: str, says: str
) -> None:
    error = refusal(tmp_path, name, content, **({"columns": {"image": COMPOSED}} if "column" in field else {}))
    assert error.field == field
    assert says in error.problem


def test_a_manifest_in_json_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"name": "t", "classes": ["a", "b"], "name": "u", "splits": {}}')
    with pytest.raises(InputError, match="the key 'name' is written twice"):
        load_manifest(tmp_path / "m.json")


def test_excels_line_about_the_separator_is_obeyed(tmp_path: Path) -> None:
    result = read(tmp_path, "r.csv", 'sep=;\r\ntext;label\r\n"a, b";neutral\r\n')
    assert column(result, "texts") == [["a, b"]]
    assert column(result, "label") == [1]


def test_long_cells_and_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BATCH_CHARACTERS", 200_000)  # tables of many long texts are made in parts
    long = "word " * 30_000
    many = "".join(f"column {n}," for n in range(8_000))
    content = f"{many}text,label\n" + f"{',' * 8_000}{long},neutral\n" * 5
    assert column(read(tmp_path, "r.csv", content), "texts") == [[long]] * 5
