"""Records files: every format gives the same table; a damaged file gives an InputError and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from tests.datasets_manifest.reading import CLASSES, column, read, refusal

RECORDS = [
    {"id": "a", "text": ["It rains."], "label": 0, "image": ["x/1.jpg", "x/2.jpg"]},
    {"id": "b", "text": ['She said "hi", then left'], "label": "positive", "image": ["3.png"]},
    {"id": "c", "text": ["日本 é"], "label": None, "image": []},
    {"id": "d", "text": [], "label": 1, "image": ["4.png"]},
]

CSV = """id,text,label,image
a,It rains.,0,x/1.jpg|x/2.jpg
b,"She said ""hi"", then left",positive,3.png
c,日本 é,,
d,,1,4.png
"""


def as_parquet(lists: bool) -> pa.Table:
    def cell(values: list[str]) -> object:
        return values if lists else (values[0] if values else None)

    labels = ["0", "positive", None, "1"]
    rows = [
        {**r, "text": cell(r["text"]), "image": r["image"], "label": label}
        for r, label in zip(RECORDS, labels, strict=True)
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", RECORDS),
        ("r.jsonl", RECORDS),
        ("r.csv", CSV),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("crlf.csv", CSV.replace("\n", "\r\n")),
        ("r.tsv", CSV.replace(",", "\t").replace('hi""\t', 'hi"",')),
        ("lists.parquet", as_parquet(lists=True)),
        ("strings.parquet", as_parquet(lists=False)),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(RECORDS).encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, RECORDS)).encode()),
    ],
)
def test_every_format_gives_the_same_table(tmp_path: Path, name: str, content: Any) -> None:
    result = read(tmp_path, name, content)
    assert result.table.to_pydict() == {
        "id": ["a", "b", "c", "d"],
        "domain": ["cards"] * 4,
        "texts": [["It rains."], ['She said "hi", then left'], ["日本 é"], []],
        "images": [[f"{tmp_path}/x/1.jpg", f"{tmp_path}/x/2.jpg"], [f"{tmp_path}/3.png"], [], [f"{tmp_path}/4.png"]],
        "label": [0, 2, -1, 1],
    }
    assert (result.repeated_ids, result.without_content, result.without_content_ids) == (0, 0, ())


@pytest.mark.parametrize("kind", ["dictionary", "large"])
def test_parquet_string_kinds(tmp_path: Path, kind: str) -> None:
    text = (
        pa.array(["x", "y"]).dictionary_encode()
        if kind == "dictionary"
        else pa.array([["x"], ["y"]]).cast(pa.large_list(pa.large_string()))
    )
    table = pa.table({"text": text, "label": pa.array([1.0, None]), "a.b": ["p", "q"]})
    result = read(tmp_path, "r.parquet", table, columns={"image": "a.b"})
    assert column(result, "texts") == [["x"], ["y"]]
    assert column(result, "label") == [1, -1]
    assert column(result, "images") == [[f"{tmp_path}/p"], [f"{tmp_path}/q"]]


def test_text_and_image_may_be_plain_strings(tmp_path: Path) -> None:
    result = read(tmp_path, "r.json", [{"text": "one", "image": "a.jpg"}])
    assert (column(result, "texts"), column(result, "images")) == ([["one"]], [[f"{tmp_path}/a.jpg"]])


def test_blank_sentences_and_nulls_are_no_content(tmp_path: Path) -> None:
    records = [{"text": ["", " ", None, "x"], "image": ["", None]}, {"text": " ", "image": "a"}]
    result = read(tmp_path, "r.json", records)
    assert (column(result, "texts"), column(result, "images")) == ([["x"], []], [[], [f"{tmp_path}/a"]])


def test_columns_are_mapped(tmp_path: Path) -> None:
    columns = {"id": "key", "text": "caption", "image": "file", "label": "mood"}
    result = read(tmp_path, "r.csv", "mood,file,caption,key,id\nneutral,a.jpg,hello,k1,no\n", columns=columns)
    assert result.table.to_pylist() == [
        {"id": "k1", "domain": "cards", "texts": ["hello"], "images": [f"{tmp_path}/a.jpg"], "label": 1}
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", "caption,img\nx,y\n"),
        ("r.jsonl", [{"caption": "x"}, {"caption": "y"}]),
        ("r.parquet", pa.table({"caption": ["x"]})),
    ],
)
def test_a_stated_column_that_is_absent_is_refused(tmp_path: Path, name: str, content: Any) -> None:
    error = refusal(tmp_path, name, content, columns={"text": "captoin"})
    assert (error.file, error.field, error.value) == (tmp_path / name, "columns.text", "captoin")
    assert "(nearest: caption)" in str(error.wanted)
    error = refusal(tmp_path, name, content)
    assert error.problem == "neither texts nor images"
    assert "caption" in str(error.value)


def test_a_column_that_appears_late_is_found(tmp_path: Path) -> None:
    result = read(
        tmp_path, "r.jsonl", [{"other": 1}, {"text": "x"}, {"text": "y", "label": 1}], columns={"label": "label"}
    )
    assert column(result, "label") == [-1, 1]


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text\ntwo\n")
    result = read(tmp_path, "a.jsonl", [{"text": "one"}], records=["b.csv", "a.jsonl"])
    assert column(result, "texts") == [["two"], ["one"]]
    assert column(result, "id") == ["train-1", "train-2"]


def test_a_format_may_be_stated(tmp_path: Path) -> None:
    assert column(read(tmp_path, "r.txt", "text\nx\n", format="tsv"), "texts") == [["x"]]
    error = refusal(tmp_path, "r.txt", "text\nx\n")
    assert error.value == ".txt"
    assert ".jsonl" in str(error.wanted)


@pytest.mark.parametrize(
    ("name", "content", "field", "problem"),
    [
        ("r.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3", "not JSON"),
        ("r.jsonl", b'{"text": "a"}\n[1]\n', "line 2", "not a record"),
        ("r.jsonl", b'{"text": "a"} {"text": "b"}\n', "line 1", "Extra data"),
        ("r.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2", "nested too deep"),
        ("r.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "line 1", "digits"),
        ("r.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2", "not UTF-8: byte 0xff"),
        ("r.jsonl", b'{"text": "a"}\n{"text": "\0"}\n', "line 2", "NUL"),
        ("r.json", b'[{"text": "a"},\n{"text"]', "line 2", "not JSON"),
        ("r.json", b'{"text": "a"}', None, "not a list of records"),
        ("r.json", b'{"text": "a"}\n{"text": "b"}', "line 2", "Extra data"),
        ("r.json", b'[{"text": "a"}, 5]', "record 2", "not a record"),
        ("r.json", b"", "line 1", "not JSON"),
        ("r.json", '[{"text": "é"}]'.encode("utf-16"), "line 1", "not UTF-8"),
        ("r.json", '[{"text": "é"}]'.encode("utf-16-be"), "line 1", "not UTF-8"),
        ("r.json", '[{"text": "e"}]'.encode("utf-16-le"), "line 1", "NUL"),
        ("r.json", '[{"text": "é"}]'.encode("latin-1"), "line 1", "not UTF-8: byte 0xe9"),
        ("r.csv", b"text,image\na\n", "line 2", "wrong number of cells"),
        ("r.csv", b'text,image\n\n"a\nb",\n"c\nd",e,f\n', "line 5", "wrong number of cells"),
        ("r.csv", b'text,image\n"a,b\nc,d\n', "line 3", "unexpected end of data"),
        ("r.csv", b'text,image\n"a" b,c\n', "line 2", "expected after"),
        ("r.csv", b"text,text\na,b\n", "column text", "two columns of one name"),
        ("r.csv", "text\nné\n".encode() + b"th\xe9\n", "line 3", "not UTF-8: byte 0xe9"),
        ("r.csv", b"text\nth\xe9 \x81\n", "line 2", "not UTF-8: byte 0xe9"),
        ("r.csv", "text\nné\n".encode("utf-16-le"), "line 1", "NUL"),
        ("r.csv", b"PK\x03\x04\0\0", None, "a zip file"),
        ("r.csv", b"text;a,image\nx,y\n", "line 1", "',' and with ';'"),
        ("r.csv", b"id,text\n1,a\n\xef\xbb\xbfid,text\n2,b\n", "line 3", "byte order mark"),
        ("r.csv", b"\xef\xbb\xbf\xef\xbb\xbfid,text\n1,a\n", "line 1", "byte order mark"),
        ("r.csv", b'id,text\n1, "hi there"\n', "line 2, column 2", "a blank before the quote"),
        ("r.csv", b'id,text\n1, "hi, there"\n', "line 2, column 2", "a blank before the quote"),
        ("r.jsonl", b'{"text": "a", "label": 0, "label": 1}', "line 1", "'label' is written twice"),
        ("r.json", b'[{"text": "a", "x": {"b": 1, "b": 2}}]', None, "'b' is written twice"),
        ("r.parquet", b"PAR1 nonsense PAR1", None, "not a readable Parquet file"),
        ("r.parquet", b"", None, "not a readable Parquet file"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, field: str | None, problem: str) -> None:
    error = refusal(tmp_path, name, content)
    assert (error.file, error.field) == (tmp_path / name, field)
    assert problem in error.problem


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("text", [1]),
        ("text", [{"bytes": b"x"}]),
        ("image", [b"x"]),
        ("label", [True]),
        ("label", [["a"]]),
        ("id", [b"x"]),
    ],
)
def test_parquet_columns_of_a_wrong_type_are_refused(tmp_path: Path, name: str, values: list[object]) -> None:
    table = pa.table({"text": ["x"], name: values})
    error = refusal(tmp_path, "r.parquet", table)
    assert (error.field, error.problem) == (f"column {name}", "wrong type")


def test_a_repeated_parquet_column_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    assert refusal(tmp_path, "r.parquet", table).problem == "two columns of one name"


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(as_parquet(lists=True), tmp_path / "whole.parquet")
    content = bytearray((tmp_path / "whole.parquet").read_bytes())
    for end in range(0, len(content), 97):
        refusal(tmp_path, "r.parquet", bytes(content[:end]))


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    read(tmp_path, "r.json", [{"text": "x"}])
    manifest = load_manifest(tmp_path / "manifest.json")
    (tmp_path / "r.json").unlink()
    with pytest.raises(InputError, match=r"r\.json: cannot be read"):
        read_split(manifest, "train")


_TEXTS = st.text(alphabet='ab,"|\t\r\n\0 é{}[]:0./', max_size=60).map(str.encode)
_RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from(["id", "text", "label", "image", "x"]),
        st.none()
        | st.text(max_size=4)
        | st.integers()
        | st.floats()
        | st.lists(st.text(max_size=3) | st.none(), max_size=2),
    ),
    max_size=4,
)
_HEADS = st.sampled_from([b"", b"text,image,label\n", b'[{"text": "a", "label": ', b'{"text": ["a"]}\n'])


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=_HEADS,
    content=st.binary(max_size=60) | _TEXTS | _RECORDS.map(lambda records: json.dumps(records).encode()),
    name=st.sampled_from(["f.json", "f.jsonl", "f.csv", "f.tsv", "f.parquet"]),
)
def test_any_bytes_give_a_table_or_an_input_error(tmp_path: Path, head: bytes, content: bytes, name: str) -> None:
    try:
        result = read(tmp_path, name, head + content)
    except InputError as error:
        assert str(tmp_path) in str(error)
        return
    result.table.validate(full=True)
    assert result.table.num_rows > 0
    assert len(set(column(result, "id"))) == result.table.num_rows
    assert all(-1 <= label < len(CLASSES) for label in column(result, "label"))
    assert all(
        path.startswith(f"{tmp_path}/") or path == str(tmp_path) for paths in column(result, "images") for path in paths
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_parquet_gives_a_table_or_an_input_error(tmp_path: Path, data: st.DataObject) -> None:
    pq.write_table(as_parquet(lists=True), tmp_path / "whole.parquet", compression="none")
    content = bytearray((tmp_path / "whole.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(tmp_path, "r.parquet", bytes(content)).table.validate(full=True)
    except InputError as error:
        assert str(tmp_path) in str(error)
