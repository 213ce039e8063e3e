"""Helpers of the tests that read splits: write a records file and a manifest, read them, expect a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import TABLE_SCHEMA, ReadResult, read_split

CLASSES = ["negative", "neutral", "positive"]


def read(folder: Path, name: str, content: Any, classes: list[str] = CLASSES, **split: Any) -> ReadResult:
    """Writes the content (lists as JSON, or JSON lines by name) and a manifest around it; reads split `train`."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in content))
    else:
        path.write_text(json.dumps(content))
    manifest = {"name": "cards", "classes": classes, "splits": {"train": {"records": name, **split}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = read_split(load_manifest(folder / "manifest.json"), "train")
    assert result.table.schema == TABLE_SCHEMA
    return result


def refusal(folder: Path, name: str, content: Any, **split: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(folder, name, content, **split)
    return caught.value


def column(result: ReadResult, name: str) -> list[Any]:
    return result.table.column(name).to_pylist()
