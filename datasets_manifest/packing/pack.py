"""A data set as few large files: pictures back to back in shards, everything else in a Parquet table a split.

<out>/
    manifest.yaml           written last: a folder without one is not finished
    <split>.parquet         id, text, label, image (references into the shards, see packed.py)
    shards/<split>-<n>.shard
    .parts/                 only while packing: what is done, and of what

Packing again after an interruption goes on: a part (shard and rows) is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.files import write_atomically
from datasets_manifest.manifest import packed_pictures as packed
from datasets_manifest.manifest.readers import read_split
from datasets_manifest.manifest.schema import LoadedManifest, Manifest
from datasets_manifest.stream.images import BadPicture, read_picture_bytes, reduce_picture

ROWS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.list_(pa.string())),
        ("label", pa.string()),
        ("image", pa.list_(pa.string())),
    ]
)
RECORDS_A_SHARD = 2_000
_EXTENSIONS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"RI": ".webp", b"BM": ".bmp"}


@dataclass(frozen=True)
class Packing:
    """How pictures are packed. shorter_side: larger pictures are reduced to it, in pixels; None: bytes stay as they are.

    quality: of the JPEGs that reduced pictures become, 1 to 100.
    """

    shorter_side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class Packed:
    """What was packed: the manifest, numbers of records, pictures, and of those that could not be read, and bytes."""

    manifest: Path
    records: int
    pictures: int
    bad: int
    bytes_before: int
    bytes_after: int


def pack(
    manifest: LoadedManifest, out: Path, how: Packing, on_records: Callable[[int], None] = lambda count: None
) -> Packed:
    """Pack all splits into the folder `out`, or go on with what an interrupted call left there.

    A picture that cannot be read stays what it is: its bytes are kept, or its path if there are none.

    Raises:
        InputError: `out` holds something else, or the manifest cannot be read.
    """
    work = out / ".parts"
    _claim(manifest, out, work, how)
    totals = {"records": 0, "pictures": 0, "bad": 0, "before": 0, "after": 0}
    for split in manifest.splits:
        table = read_split(manifest, split).table
        tables = []
        for number, start in enumerate(range(0, table.num_rows, RECORDS_A_SHARD)):
            part = work / f"{split}-{number:05d}.parquet"
            if not part.is_file():
                rows = table.slice(start, RECORDS_A_SHARD).to_pylist()
                _pack_part(rows, manifest, split, out / "shards" / f"{split}-{number:05d}.shard", part, how)
            tables.append(pq.read_table(part))
            counts = json.loads(tables[-1].schema.metadata[b"counts"])
            totals = {name: total + counts[name] for name, total in totals.items()}
            on_records(totals["records"])
        whole = pa.concat_tables(tables).replace_schema_metadata(None)
        write_atomically(out / f"{split}.parquet", _parquet(whole))
    place = out / "manifest.yaml"
    write_atomically(place, _manifest_text(manifest))
    shutil.rmtree(work)
    return Packed(place, totals["records"], totals["pictures"], totals["bad"], totals["before"], totals["after"])


def unpack(manifest: LoadedManifest, out: Path) -> Path:
    """Write a packed (or any other) data set as one file a picture and JSON lines; the new manifest.

    Raises:
        InputError: `out` is not empty, or a picture's bytes are not those that were packed.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError("the folder is not empty", file=out, wanted="a new folder")
    for split in manifest.splits:
        lines = []
        for number, row in enumerate(read_split(manifest, split).table.to_pylist()):
            images = [
                _unpack_picture(path, out, f"pictures/{split}/{number:07d}-{n}") for n, path in enumerate(row["images"])
            ]
            label = manifest.classes[row["label"]] if row["label"] >= 0 else None
            record = {"id": row["id"], "text": row["texts"], "image": images, "label": label}
            lines.append(json.dumps(record, ensure_ascii=False))
        write_atomically(out / f"{split}.jsonl", "\n".join(lines) + "\n")
    write_atomically(out / "manifest.yaml", _manifest_text(manifest, ".jsonl"))
    return out / "manifest.yaml"


def _claim(manifest: LoadedManifest, out: Path, work: Path, how: Packing) -> None:
    """`out` is new, or what an interrupted call with the same manifest and settings left."""
    content = json.dumps([manifest.manifest.model_dump(mode="json"), str(manifest.path), vars(how)], sort_keys=True)
    files = [str(path) for split in manifest.splits for path in manifest.record_paths(split)]
    stamps = [Path(file).stat().st_mtime_ns if Path(file).is_file() else 0 for file in files]
    token = hashlib.sha256(f"{content}{files}{stamps}".encode()).hexdigest()
    claim = work / "of.txt"
    if claim.is_file() and claim.read_text() == token:
        return
    if out.exists() and any(out.iterdir()):
        problem = "holds a packing of something else, unfinished" if claim.is_file() else "is not empty"
        raise InputError(f"the folder {problem}", file=out, wanted="a new folder")
    write_atomically(claim, token)


def _pack_part(
    rows: list[dict[str, Any]], manifest: LoadedManifest, split: str, shard: Path, part: Path, how: Packing
) -> None:
    body = BytesIO()
    counts = {"records": len(rows), "pictures": 0, "bad": 0, "before": 0, "after": 0}
    images: list[list[str]] = []
    root = str(manifest.image_root(split)).rstrip("/") + "/"
    paths = [path for row in rows for path in row["images"]]
    with ThreadPoolExecutor() as pool:
        found = iter(list(pool.map(partial(_read, how=how), paths)))
    for row in rows:
        references = []
        for path in row["images"]:
            data, before, bad = next(found)
            counts["pictures"] += 1
            counts["bad"] += bad
            counts["before"] += before
            counts["after"] += len(data)
            if data:
                references.append(packed.reference(f"shards/{shard.name}", body.tell(), data))
                body.write(data)
            else:
                references.append("missing/" + path.removeprefix(root).lstrip("/").replace("://", "/"))
        images.append(references)
    labels = [manifest.classes[row["label"]] if row["label"] >= 0 else None for row in rows]
    columns = [[row["id"] for row in rows], [row["texts"] for row in rows], labels, images]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, ROWS_SCHEMA, strict=True)]
    write_atomically(shard, body.getvalue())
    table = pa.table(arrays, schema=ROWS_SCHEMA.with_metadata({"counts": json.dumps(counts)}))
    write_atomically(part, _parquet(table))


def _read(path: str, how: Packing) -> tuple[bytes, int, bool]:
    """What is packed of a picture, its size before, and whether it is bad."""
    try:
        data = read_picture_bytes(path)
    except BadPicture:
        return b"", 0, True
    if how.shorter_side is None:
        return data, len(data), False
    try:
        return reduce_picture(data, how.shorter_side, how.quality), len(data), False
    except BadPicture:
        return data, len(data), True


def _unpack_picture(path: str, out: Path, name: str) -> str:
    try:
        data = read_picture_bytes(path)
    except BadPicture as bad:
        if bad.reason == "missing":
            return f"missing/{name}"
        raise InputError(f"cannot be unpacked ({bad.reason})", file=path) from None
    name += next((extension for magic, extension in _EXTENSIONS.items() if data.startswith(magic)), ".img")
    write_atomically(out / name, data)
    return name


def _manifest_text(manifest: LoadedManifest, suffix: str = ".parquet") -> str:
    splits = {name: {"records": f"{name}{suffix}"} for name in manifest.splits}
    for name, split in manifest.splits.items():
        if split.sample is not None:
            splits[name]["sample"] = split.sample  # type: ignore[assignment]
    content = {"schema_version": 1, "name": manifest.name, "classes": manifest.classes, "splits": splits}
    Manifest.model_validate(content)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
