"""Reading splits: the table, ids, dropped records, batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datasets_manifest.records import readers
from tests.datasets_manifest.reading import column, read, refusal


def test_repeated_ids_get_numbers(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "a#2", "a", 7, "7", "", None, " a "]
    result = read(tmp_path, "r.json", [{"id": each, "text": "x"} for each in ids])
    assert column(result, "id") == ["a", "b", "a#2", "a#2#2", "a#3", "7", "7#2", "train-8", "train-9", "a#4"]
    assert result.repeated_ids == 5


def test_ids_that_look_like_numbered_ones_are_respected(tmp_path: Path) -> None:
    result = read(tmp_path, "r.json", [{"id": each, "text": "x"} for each in ("a#2", "a#3", "a", "a", "a")])
    assert column(result, "id") == ["a#2", "a#3", "a", "a#4", "a#5"]


@pytest.mark.timeout(20)
def test_one_id_for_all_records_is_not_slow(tmp_path: Path) -> None:
    result = read(tmp_path, "r.json", [{"id": "a", "text": "x"}] * 50_000)
    assert column(result, "id")[-1] == "a#50000"
    assert result.repeated_ids == 49_999


def test_made_ids_do_not_collide_with_written_ones(tmp_path: Path) -> None:
    result = read(tmp_path, "r.json", [{"id": "train-2", "text": "x"}, {"text": "y"}])
    assert column(result, "id") == ["train-2", "train-2#2"]


@pytest.mark.parametrize("value", [1.5, True, ["a"], {}, "\ud83d"])
def test_ids_that_are_refused(tmp_path: Path, value: object) -> None:
    error = refusal(tmp_path, "r.json", [{"id": value, "text": "x"}])
    assert str(error.field).endswith(", id")


def test_records_without_content_are_dropped_and_named(tmp_path: Path) -> None:
    records = [{"id": f"e{number}", "text": [], "label": 0} for number in range(12)] + [{"text": "x"}]
    result = read(tmp_path, "r.json", records)
    assert column(result, "id") == ["train-13"]
    assert result.without_content == 12
    assert result.without_content_ids == tuple(f"e{number}" for number in range(10))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", []),
        ("r.jsonl", ""),
        ("r.jsonl", "\n \n"),
        ("r.csv", ""),
        ("r.csv", "text,image\n"),
        ("r.csv", "\n\n"),
        ("r.parquet", pa.table({"text": pa.array([], pa.string())})),
    ],
)
def test_an_empty_split_is_refused(tmp_path: Path, name: str, content: Any) -> None:
    error = refusal(tmp_path, name, content)
    assert error.field == "splits.train"
    assert error.problem == "the split is empty: no record"


def test_a_split_without_any_content_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "r.csv", "text,image\n,\n,\n")
    assert error.problem == "the split is empty: 2 records, none with a text or an image"


@pytest.mark.parametrize("value", [5, {"a": 1}, True, [["x"]], ["x", 5]])
@pytest.mark.parametrize("name", ["text", "image"])
def test_content_of_a_wrong_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    error = refusal(tmp_path, "r.jsonl", [{"text": "ok"}, {"id": "k", name: value}])
    assert error.field == f"line 2 (id 'k'), {name}"
    assert "string" in str(error.wanted)


def test_half_an_emoji_is_replaced_in_texts(tmp_path: Path) -> None:
    result = read(tmp_path, "r.json", b'[{"text": "cut \\ud83d"}, {"text": "whole \\ud83d\\ude00"}]')
    assert column(result, "texts") == [["cut \ufffd"], ["whole 😀"]]


def test_json_strings_may_hold_unicode_line_ends(tmp_path: Path) -> None:
    content = "\n".join(json.dumps({"text": f"a{sign}b"}, ensure_ascii=False) for sign in "\u2028\u0085\x7f")
    assert column(read(tmp_path, "r.jsonl", content), "texts") == [["a\u2028b"], ["a\u0085b"], ["a\x7fb"]]


def test_batches_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BATCH_ROWS", 3)
    for count in (2, 3, 7):
        result = read(tmp_path, "r.json", [{"text": str(number), "label": number % 3} for number in range(count)])
        assert column(result, "texts") == [[str(number)] for number in range(count)]
        assert result.table.column("texts").num_chunks == 1


def test_a_table_too_large_for_one_chunk_stays_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BATCH_ROWS", 3)
    monkeypatch.setattr(readers, "_MAX_CHUNK_BYTES", 1)
    result = read(tmp_path, "r.json", [{"text": str(number)} for number in range(7)])
    assert result.table.column("texts").num_chunks == 3
    assert result.table.num_rows == 7
