"""Features of frozen encoders in a folder: Parquet, a row a record, and what they are of.

<folder>/
    features.json            what the features are of, from the beginning; at the end also sizes and SHA-256 of the shards
    features-00000.parquet   SHARD_ROWS records each, in the table's order

A shard appears whole or not at all: who writes the others later need not write it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.disk import megabytes
from datasets_manifest.errors import InputError
from datasets_manifest.files import digest, json_text, read_json, whole_file, write_atomically
from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.records.sharded_table import in_memory

SCHEMA_VERSION = 1
SHARD_ROWS = 512
FEATURES = "features.json"
TOWERS = ("text", "picture")
_KEYS = ("domain", "split", "id", "content")  # what names a record; `content`: see content_of


@dataclass(frozen=True)
class Features:
    """Features of the rows of a table, in its order; V = views (weak, then the strong ones), N = rows.

    text_VNK, picture_VNK: float32. bad: what was wrong with pictures that were skipped, by row. missing_N2: whether a
    record lacks texts, and whether it lacks pictures; None: nobody asked.
    """

    text_VNK: np.ndarray
    picture_VNK: np.ndarray
    bad: dict[int, list[str]]
    missing_N2: np.ndarray | None = None

    @property
    def strong_views(self) -> int:
        return len(self.text_VNK) - 1


def views_of(strong: int) -> list[str]:
    """The names of the views: `weak`, `strong_0`, …"""
    return ["weak", *(f"strong_{number}" for number in range(strong))]


def parts_of(corpus: Corpus) -> list[Part]:
    """What training reads of a corpus, in the table's order."""
    parts = [*corpus.train, *(part for part in corpus.val if part is not None)]
    return sorted(parts, key=lambda part: part.start)


def records_of(corpus: Corpus) -> pa.Table:
    """Columns of `_KEYS` and `label`, a row for each row of the corpus' table."""
    parts = parts_of(corpus)
    table = in_memory(corpus.table)
    contents = [content_of(*row) for row in zip(table["texts"].to_pylist(), table["images"].to_pylist(), strict=True)]
    return pa.table(
        {
            "domain": pa.array([part.domain for part in parts for _ in part.rows], pa.string()),
            "split": pa.array([part.split for part in parts for _ in part.rows], pa.string()),
            "id": table["id"].combine_chunks(),
            "content": pa.array(contents, pa.string()),
            "label": table["label"].combine_chunks(),
        }
    )


def content_of(texts: Sequence[str], images: Sequence[str]) -> str:
    """A short hash of a record's texts and the names of its pictures' files, wherever they lie."""
    names = [PurePosixPath(image).name for image in images]
    return hashlib.sha256(json.dumps([list(texts), names]).encode()).hexdigest()[:16]


def digest_of(records: pa.Table) -> str:
    """SHA-256 of what names the records, in their order."""
    rows = zip(*(records[key].to_pylist() for key in _KEYS), strict=True)
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def begin(folder: Path, content: dict[str, Any]) -> None:
    """Note in a folder what its features will be of; nothing is done if it stands there already.

    Args:
        content: as JSON holds it, without `shards`.

    Raises:
        InputError: the folder holds something else.
    """
    require_same(folder, content)
    if not (folder / FEATURES).is_file():
        write_atomically(folder / FEATURES, json_text(content | {"shards": None}))


def require_same(folder: Path, content: dict[str, Any]) -> None:
    """Raises InputError: the folder holds something else than these features, or a part of them."""
    if (folder / FEATURES).is_file():
        found = {key: value for key, value in read_json(folder / FEATURES).items() if key not in ("shards", "versions")}
        wanted = {key: value for key, value in json.loads(json_text(content)).items() if key != "versions"}
        differing = _differing(found, wanted)
        if differing:
            problem = f"holds features of something else: {', '.join(differing[:3])} differ"
            raise InputError(problem, file=folder, field="OUT", wanted="a new folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is not empty", file=folder, field="OUT", wanted="a new folder")


def _differing(found: Any, wanted: Any, path: str = "") -> list[str]:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [path]
    keys = {**wanted, **found}
    return [
        name
        for key in keys
        for name in _differing(found.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
    ]


def num_shards(rows: int) -> int:
    return -(-rows // SHARD_ROWS)


def rows_of_shard(shard: int, rows: int) -> np.ndarray:
    """The row numbers in a shard of a table of so many rows."""
    return np.arange(shard * SHARD_ROWS, min(rows, (shard + 1) * SHARD_ROWS), dtype=np.int64)


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"features-{shard:05d}.parquet"


def missing_shards(folder: Path, rows: int) -> list[int]:
    """The numbers of shards that are not there, or are not what features.json says of them: truncated or altered."""
    known: dict[str, Any] = {}
    if (folder / FEATURES).is_file():
        known = read_json(folder / FEATURES).get("shards") or {}

    def is_there(file: Path) -> bool:
        return file.is_file() and (digest(file) == known[file.name] if file.name in known else _is_whole(file))

    return [shard for shard in range(num_shards(rows)) if not is_there(shard_file(folder, shard))]


def _is_whole(file: Path) -> bool:
    try:
        pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def write_shard(folder: Path, shard: int, records: pa.Table, computed: pa.Table) -> None:
    """Write one shard.

    Args:
        records: of all rows. computed: of the shard's rows, in order: `row`, `bad` and a column for each tower and view.

    Raises:
        OSError: disk full or not writable.
        RuntimeError: not the shard's rows.
    """
    rows = rows_of_shard(shard, records.num_rows)
    if not np.array_equal(computed["row"].to_numpy(), rows):
        raise RuntimeError(f"the features of shard {shard} are not of its rows")
    table = records.slice(int(rows[0]), len(rows))
    for name in computed.column_names:
        if name != "row":
            table = table.append_column(name, computed[name])
    with whole_file(shard_file(folder, shard), size=table.nbytes) as draft:
        pq.write_table(table.combine_chunks(), draft, use_dictionary=["domain", "split"])


def finish(folder: Path) -> dict[str, Any]:
    """Note the shards' sizes and hashes: the features are complete. What features.json then holds.

    Raises:
        RuntimeError: shards are missing.
    """
    content = read_json(folder / FEATURES)
    files = [shard_file(folder, shard) for shard in range(num_shards(content["rows"]))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise RuntimeError(f"{folder} lacks {len(missing)} shards")
    content["shards"] = {file.name: digest(file) for file in files}
    write_atomically(folder / FEATURES, json_text(content))
    return content


class FeatureFolder:
    """A folder with complete features.

    Raises:
        InputError: there is no such folder, or it is not complete.
    """

    def __init__(self, folder: Path, field: str) -> None:
        self.folder, self.field = folder, field
        if not (folder / FEATURES).is_file():
            raise InputError(
                "holds no features",
                file=folder,
                field=field,
                wanted=f"a folder with {FEATURES}: m2can features RECIPE OUT",
            )
        self.content = read_json(folder / FEATURES)
        version = self.content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                "is of another version",
                file=folder / FEATURES,
                field="schema_version",
                value=version,
                wanted=str(SCHEMA_VERSION),
            )
        if self.content.get("shards") is None:
            wanted = "the command that computes them, given again: it goes on with the missing shards"
            raise InputError("is not complete", file=folder, field=field, wanted=wanted)

    def verify(self) -> None:
        """Compare every shard with its hash. Raises InputError: one is missing, truncated or altered."""
        again = "the command that computes them, given again: it makes the shard anew"
        for number, (name, wanted) in enumerate(self.content["shards"].items()):
            file = shard_file(self.folder, number)
            if file.name != name or not file.is_file():
                raise InputError("is missing", file=file, field=self.field, wanted=again)
            if digest(file) != wanted:
                raise InputError("is truncated or altered", file=file, field=self.field, wanted=again)

    def described(self) -> str:
        """In words: `1,200 records, the weak and 2 strong views, 15 MB in /data/features`."""
        size = sum(shard["bytes"] for shard in self.content["shards"].values())
        views = f"the weak and {self.content['views']['strong']} strong views"
        return f"{self.content['rows']:,} records, {views}, {megabytes(size)} in {self.folder}"

    def with_bad_pictures(self) -> int:
        """How many records have pictures that could not be read."""
        return sum(bool(messages) for table in self._shards(["bad"]) for messages in table["bad"].to_pylist())

    def places(self, records: pa.Table) -> np.ndarray:
        """Where the features of these records lie: int64 [N], numbers of rows of all shards one after another.

        Args:
            records: of `records_of`. They may be fewer than the folder's, in another order.

        Raises:
            InputError: one of them has no features, or is another record than it was.
        """
        known: dict[tuple[str, str, str], tuple[int, str]] = {}
        for table in self._shards([*_KEYS]):
            for domain, split, identity, content in zip(*(table[key].to_pylist() for key in _KEYS), strict=True):
                known[domain, split, identity] = (len(known), content)
        found = np.empty(records.num_rows, np.int64)
        for number, row in enumerate(zip(*(records[key].to_pylist() for key in _KEYS), strict=True)):
            *key, content = row
            place = known.get(tuple(key))
            if place is None or place[1] != content:
                domain, split, identity = key
                problem = f"has no features of record {identity} of {domain}, {split}"
                if place is not None:
                    problem = (
                        f"has features of another record {identity} of {domain}, {split}: its texts or pictures differ"
                    )
                wanted = f"features of these {records.num_rows:,} records: m2can features RECIPE in a new folder"
                raise InputError(problem, file=self.folder, field=self.field, wanted=wanted)
            found[number] = place[0]
        return found

    def read(self, records: pa.Table) -> Features:
        """The features of these records, in their order. Raises InputError: see `places`."""
        places = self.places(records)
        views = views_of(int(self.content["views"]["strong"]))
        widths = [int(self.content["encoders"][tower]["width"]) for tower in TOWERS]
        arrays = [np.empty((len(views), len(places), width), np.float32) for width in widths]
        bad: dict[int, list[str]] = {}
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        start = 0
        for table in self._shards(None):
            first, last = np.searchsorted(ascending, [start, start + table.num_rows])
            mine = order[first:last]
            inside = places[mine] - start
            for tower, array_VNK in zip(TOWERS, arrays, strict=True):
                for view, name in enumerate(views):
                    array_VNK[view, mine] = _matrix(table[f"{tower}_{name}"])[inside]
            for row, messages in zip(mine.tolist(), table["bad"].take(inside).to_pylist(), strict=True):
                if messages:
                    bad[row] = messages
            start += table.num_rows
        text_VNK, picture_VNK = arrays
        return Features(text_VNK, picture_VNK, bad)

    def _shards(self, columns: list[str] | None) -> Iterator[pa.Table]:
        for name in self.content["shards"]:
            yield pq.read_table(self.folder / name, columns=columns)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed-size lists as [rows, width]."""
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)


def feature_column(features_NK: np.ndarray) -> pa.Array:
    """[rows, width] as a column of fixed-size lists of float32."""
    flat = pa.array(np.ascontiguousarray(features_NK, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, features_NK.shape[1])
