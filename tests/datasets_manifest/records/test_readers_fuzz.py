"""Whatever bytes a records file or a manifest holds: records with true labels come out, or an InputError."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from tests.datasets_manifest.reading import CLASSES, column, read

NAMES = ["r.json", "r.jsonl", "r.csv", "r.tsv", "r.parquet", "r.jsonl.gz", "r.csv.gz"]
BROKEN = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"]",
    b",",
    b"\n",
    b"\r",
    b"\\ud800",
    b"9" * 5000,
    b"[" * 3000,
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CLASSES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
records = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": json_values,
            "text": json_values | st.text(),
            "image": json_values | st.lists(st.text(alphabet="./~ab\0:s3", max_size=12), max_size=3),
            "label": json_values | st.sampled_from([*CLASSES, "0", "2", "3", "-1", 0, 2, 3, -1, 1.0, "neutrl", True]),
        },
    ),
    max_size=4,
)


def attempt(name: str, content: Any) -> list[dict[str, Any]] | None:
    """What comes out, None for an InputError; any other exception is a failure."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(InputError):
        result = read(Path(folder), name, content)
        images = [path for paths in column(result, "images") for path in paths]
        assert all(path.startswith(folder + "/") for path in images)
        return result.table.to_pylist()
    return None


def expected_label(value: Any) -> int | None:
    """The label that a value means, None if it means none: the rule, written down a second time."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return -1
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        names = {**{each: i for i, each in enumerate(CLASSES)}, **{str(i): i for i in range(3)}}
        return names.get(value.strip())
    return int(value) if value in (0, 1, 2) else None


@settings(max_examples=150)
@given(records)
def test_json_records_come_out_with_their_labels_or_not_at_all(content: list[dict[str, Any]]) -> None:
    rows = attempt("r.json", content)
    if rows is None:
        return
    labels = [expected_label(record.get("label")) for record in content]
    assert None not in labels, "a label that means no class was taken"
    kept = [label for record, label in zip(content, labels, strict=True) if has_content(record)]
    assert [row["label"] for row in rows] == kept


def has_content(record: dict[str, Any]) -> bool:
    found = []
    for key in ("text", "image"):
        value = record.get(key)
        found += value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and item and not item.isspace() for item in found)


@settings(max_examples=150)
@given(st.sampled_from(NAMES), st.binary(max_size=200) | st.lists(st.sampled_from(BROKEN), max_size=6).map(b"".join))
def test_any_bytes_give_records_or_an_input_error(name: str, content: bytes) -> None:
    attempt(name, content)
    if name.endswith(".gz"):
        attempt(name, gzip.compress(content))


GOOD = b'{"text": "a, b", "label": "positive"}\n{"text": "c", "label": 0}\n'
TABLE = b'text,label\n"a, b",positive\nc,0\n'


@settings(max_examples=200)
@given(st.sampled_from([("r.jsonl", GOOD), ("r.csv", TABLE)]), st.data())
def test_a_damaged_file_never_gives_a_class_it_did_not_name(case: tuple[str, bytes], data: st.DataObject) -> None:
    name, good = case
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 4)))
    damaged = good[:start] + data.draw(st.sampled_from(BROKEN) | st.binary(max_size=3)) + good[stop:]
    for row in attempt(name, damaged) or []:
        label = row["label"]
        assert label in (-1, 0, 1, 2)
        if label > 0:
            assert CLASSES[label].encode() in damaged or str(label).encode() in damaged


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path_factory.mktemp("parquet") / "r.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 50, "label": ["positive", "negative"] * 50}), file)
    return file.read_bytes()


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_parquet_file_gives_known_classes_or_an_input_error(parquet: bytes, data: st.DataObject) -> None:
    damaged = bytearray(parquet)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    rows = attempt("r.parquet", bytes(damaged[: data.draw(st.integers(len(damaged) - 8, len(damaged)))]))
    assert all(row["label"] in (-1, 0, 1, 2) for row in rows or [])


@settings(max_examples=60)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([*BROKEN, b"&a ", b"*a", b"!!python/object:os.x", b": "]), max_size=8).map(b"".join)
    | json_values.map(lambda x: json.dumps(x).encode())
)
def test_any_manifest_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("m.yaml", "m.json"):
            file = Path(folder) / name
            file.write_bytes(content)
            with pytest.raises(InputError):
                read_split(load_manifest(file), "train")
