"""A data set as few large files: pictures one after another in shards, all else in one Parquet table a split.

<out>/
    manifest.yaml           written last: a folder without one is not finished
    <split>.parquet         id, text, label, image (references into the shards, see records/packed_pictures.py)
    shards/<split>-<n>.shard
    .parts/                 only while packing: the finished parts, and a hash of the input and the settings

An interrupted packing is resumed by the same call: a part (shard and rows) appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.files import whole_file, whole_folder, write_atomically
from datasets_manifest.manifest.keys import Manifest
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.records import packed_pictures as packed
from datasets_manifest.records.picture_formats import FORMATS, known_format
from datasets_manifest.records.readers import read_split
from datasets_manifest.stream.images import inspect_picture, read_picture_bytes, reduce_picture
from datasets_manifest.stream.picture_files import BadPicture

ROWS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.list_(pa.string())),
        ("label", pa.string()),
        ("image", pa.list_(pa.string())),
    ]
)
RECORDS_A_SHARD = 2_000
_PARTS_VERSION = 2  # of the files in .parts


@dataclass(frozen=True)
class Packing:
    """How pictures are packed.

    shorter_side: larger pictures are reduced to it, in pixels; None: bytes stay as they are.
    quality: of the JPEGs that reduced pictures become, 1 to 100.
    """

    shorter_side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class Packed:
    """The new manifest, and counts. bad: pictures that cannot be read. bytes_*: of all pictures."""

    manifest: Path
    records: int = 0
    pictures: int = 0
    bad: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


def pack(manifest: LoadedManifest, out: Path, how: Packing) -> Packed:
    """Pack all splits into the folder `out`, or resume an interrupted call.

    Of a picture that cannot be decoded the bytes are packed as they are; of a missing one the path stays.

    Raises:
        InputError: `out` holds something else, or the manifest cannot be read.
    """
    work = out / ".parts"
    read = {split: read_split(manifest, split).table for split in manifest.splits}
    _claim(manifest, out, work, how)
    totals: Counter[str] = Counter()
    for split, table in read.items():
        tables = []
        for number, start in enumerate(range(0, table.num_rows, RECORDS_A_SHARD)):
            part = work / f"{split}-{number:05d}.parquet"
            if not part.is_file():
                rows = table.slice(start, RECORDS_A_SHARD).to_pylist()
                _pack_part(rows, manifest, split, out / "shards" / f"{split}-{number:05d}.shard", part, how)
            tables.append(pq.read_table(part))
            totals.update(json.loads(tables[-1].schema.metadata[b"counts"]))
        _write_parquet(pa.concat_tables(tables).replace_schema_metadata(None), out / f"{split}.parquet")
    file = out / "manifest.yaml"
    write_atomically(file, _manifest_text(manifest))
    shutil.rmtree(work)
    return Packed(file, **totals)


def unpack(manifest: LoadedManifest, out: Path) -> Path:
    """Write a packed (or any other) data set as one file a picture and JSON lines, whole or not at all; the new manifest.

    Raises:
        InputError: `out` is not empty, or a picture's bytes are not those that were packed.
    """
    out = out.resolve()
    _require_empty(out, "is not empty")
    if out.is_mount():
        raise InputError("is a mount point, which cannot be replaced", file=out, wanted="a new folder in it")
    with whole_folder(out) as draft:
        for split in manifest.splits:
            lines = []
            for number, row in enumerate(read_split(manifest, split).table.to_pylist()):
                images = [
                    _unpack_picture(path, draft, f"pictures/{split}/{number:07d}-{n}")
                    for n, path in enumerate(row["images"])
                ]
                lines.append(json.dumps(_record(row, manifest, images), ensure_ascii=False))
            (draft / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (draft / "manifest.yaml").write_text(_manifest_text(manifest, ".jsonl"), encoding="utf-8")
    return out / "manifest.yaml"


def _require_empty(out: Path, problem: str) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("is a file", file=out, wanted="a new folder")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"the folder {problem}", file=out, wanted="a new folder")


def _claim(manifest: LoadedManifest, out: Path, work: Path, how: Packing) -> None:
    """Refuse an `out` that is neither new nor left by an interrupted call with the same manifest and settings."""
    content = json.dumps(
        [_PARTS_VERSION, manifest.manifest.model_dump(mode="json"), str(manifest.path), vars(how)], sort_keys=True
    )
    files = [str(path) for split in manifest.splits for path in manifest.record_paths(split)]
    stamps = [Path(file).stat().st_mtime_ns if Path(file).is_file() else 0 for file in files]
    token = hashlib.sha256(f"{content}{files}{stamps}".encode()).hexdigest()
    claim = work / "of.txt"
    if claim.is_file() and claim.read_text() == token:
        return
    _require_empty(out, "holds a packing of something else, unfinished" if claim.is_file() else "is not empty")
    write_atomically(claim, token)


def _pack_part(
    rows: list[dict[str, Any]], manifest: LoadedManifest, split: str, shard: Path, part: Path, how: Packing
) -> None:
    root = str(manifest.image_root(split)).rstrip("/") + "/"
    counts: Counter[str] = Counter(records=len(rows))
    records = []
    with ThreadPoolExecutor() as pool, whole_file(shard) as draft, draft.open("wb") as body:
        pictures = pool.map(partial(_read, how=how), [path for row in rows for path in row["images"]])
        for row in rows:
            images = []
            for path, (data, before, bad) in zip(
                row["images"], pictures, strict=False
            ):  # `pictures` holds those of all rows
                counts.update(pictures=1, bad=bad, bytes_before=before, bytes_after=len(data))
                if data:
                    images.append(packed.reference(f"shards/{shard.name}", body.tell(), data))
                    body.write(data)
                else:
                    images.append("missing/" + path.removeprefix(root).lstrip("/").replace("://", "/"))
            records.append(_record(row, manifest, images))
    schema = ROWS_SCHEMA.with_metadata({"counts": json.dumps(counts)})
    _write_parquet(pa.Table.from_pylist(records, schema), part)


def _record(row: dict[str, Any], manifest: LoadedManifest, images: list[str]) -> dict[str, Any]:
    label = manifest.classes[row["label"]] if row["label"] >= 0 else None
    return {"id": row["id"], "text": row["texts"], "image": images, "label": label}


def _read(path: str, how: Packing) -> tuple[bytes, int, bool]:
    """A picture's bytes to pack, its size before in bytes, and whether it is bad."""
    try:
        data = read_picture_bytes(path)
    except BadPicture:
        return b"", 0, True
    try:
        if how.shorter_side is None:
            inspect_picture(data)
            return data, len(data), False
        return reduce_picture(data, how.shorter_side, how.quality), len(data), False
    except BadPicture:
        return data, len(data), True


def _unpack_picture(path: str, out: Path, name: str) -> str:
    try:
        data = read_picture_bytes(path)
    except BadPicture as bad:
        if bad.reason == "missing":
            return f"missing/{name}"
        raise InputError(f"cannot be unpacked ({bad.problem})", file=path) from None
    form = known_format(data)
    name += FORMATS[form][0] if form is not None else ".img"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(data)
    return name


def _manifest_text(manifest: LoadedManifest, suffix: str = ".parquet") -> str:
    splits = {name: {"records": f"{name}{suffix}"} for name in manifest.splits}
    content = {"schema_version": 1, "name": manifest.name, "classes": manifest.classes, "splits": splits}
    Manifest.model_validate(content)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _write_parquet(table: pa.Table, file: Path) -> None:
    with whole_file(file) as draft:
        pq.write_table(table, draft)
