"""Rows in Parquet files, looked up by number: of a corpus that is too large for a table on each node.

A shard is a Parquet file of row groups. Whoever needs rows reads the groups they lie in, no more; an index says at which row
each group begins. Labels are apart, as small numbers: every worker needs all of them, and no group has to be read for them.
"""

from __future__ import annotations

import functools
import io
import json
import posixpath
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.manifest import storage
from datasets_manifest.manifest.storage import Location

COLUMNS = ("id", "domain", "texts", "images", "label")  # of readers.TABLE_SCHEMA
GROUP_ROWS, GROUP_BYTES = 1024, 2**20  # of a row group, whichever is less: what one look-up reads
SHARD_ROWS = 2**18
INDEX = "index.npz"  # written last: a folder that has it is whole
_STORED = ("id", "texts", "images")
_LABEL = np.int16
_KEPT_GROUPS, _KEPT_FILES = 128, 16  # in each process


@dataclass(frozen=True, eq=False)
class ShardedTable:
    """Rows of readers.TABLE_SCHEMA in Parquet files. What it offers has the name and the meaning it has in a pa.Table.

    Args:
        folder: of the shards.
        domains: of each shard.
        group_starts: int64 [G + 1], the first row of each group; at last the number of rows of all shards.
        shard_groups: int64 [S + 1], the first group of each shard; at last G.
        all_labels: int16 of the rows of all shards, -1 where unlabelled.
        start, stop: which of these rows this is.
        column_names: that are looked up.
    """

    folder: str
    domains: tuple[str, ...]
    group_starts: np.ndarray
    shard_groups: np.ndarray
    all_labels: np.ndarray
    start: int
    stop: int
    column_names: tuple[str, ...] = COLUMNS

    @classmethod
    def open(cls, folder: Location) -> ShardedTable:
        """What a ShardWriter wrote. Raises OSError: there is none."""
        with storage.open_input(storage.locate(folder, INDEX)) as file, np.load(file, allow_pickle=False) as index:
            starts, groups, labels = index["group_starts"], index["shard_groups"], index["labels"]
            domains = json.loads(str(index["domains"]))
        return cls(str(folder), tuple(domains), starts, groups, labels, 0, int(starts[-1]))

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def __len__(self) -> int:
        return self.num_rows

    @property
    def labels(self) -> np.ndarray:
        """int16 [rows]."""
        return self.all_labels[self.start : self.stop]

    def select(self, columns: Sequence[str]) -> ShardedTable:
        return replace(self, column_names=tuple(columns))

    def slice(self, offset: int, length: int | None = None) -> ShardedTable:
        start = min(self.start + offset, self.stop)
        return replace(self, start=start, stop=self.stop if length is None else min(start + length, self.stop))

    def take(self, rows: Any) -> pa.Table:
        """The rows of these numbers, in their order. Raises IndexError: there is no such row."""
        wanted_N = np.asarray(rows, dtype=np.int64)
        if wanted_N.size and not 0 <= wanted_N.min() <= wanted_N.max() < self.num_rows:
            raise IndexError(f"a row of {wanted_N.min()} to {wanted_N.max()} in a table of {self.num_rows}")
        wanted_N = wanted_N + self.start
        order = np.argsort(wanted_N, kind="stable")
        sorted_N = wanted_N[order]
        groups, firsts = np.unique(self._group_of(sorted_N), return_index=True)
        ends = np.append(firsts[1:], len(sorted_N))[: len(groups)]
        pieces = [
            self._group(int(group)).take(sorted_N[first:end] - self.group_starts[group])
            for group, first, end in zip(groups, firsts, ends, strict=True)
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        stored = self._empty() if not pieces else pa.concat_tables(pieces).combine_chunks().take(back)
        return self._with_others(stored, wanted_N)

    def to_table(self) -> pa.Table:
        """All rows in memory."""
        rows = np.arange(self.start, self.stop)
        if not len(rows):
            return self._with_others(self._empty(), rows)
        first, last = self._group_of(rows[[0, -1]])
        pieces = [self._group(group) for group in range(int(first), int(last) + 1)]
        stored = pa.concat_tables(pieces).slice(self.start - int(self.group_starts[first]), len(rows))
        return self._with_others(stored.combine_chunks(), rows)

    def to_batches(self, max_chunksize: int = GROUP_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows, so many at a time."""
        for start in range(0, self.num_rows, max_chunksize):
            yield from self.slice(start, max_chunksize).to_table().combine_chunks().to_batches()

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.group_starts, rows, side="right") - 1

    def _shard_of(self, groups: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.shard_groups, groups, side="right") - 1

    def _group(self, group: int) -> pa.Table:
        shard = int(self._shard_of(np.array(group)))
        stored = tuple(name for name in self.column_names if name in _STORED)
        return _read_group(shard_file(self.folder, shard), group - int(self.shard_groups[shard]), stored)

    def _empty(self) -> pa.Table:
        return self._schema([name for name in self.column_names if name in _STORED]).empty_table()

    def _with_others(self, stored: pa.Table, rows: np.ndarray) -> pa.Table:
        """Add the columns that are in no shard, for these row numbers."""
        columns = {}
        for name in self.column_names:
            if name == "label":
                columns[name] = pa.array(self.all_labels[rows].astype(np.int32))
            elif name == "domain":
                shards = self._shard_of(self._group_of(rows))
                columns[name] = pa.array([self.domains[shard] for shard in shards], pa.string())
            else:
                columns[name] = stored[name]
        return pa.table(columns, schema=self._schema(self.column_names))

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        kinds = {"label": pa.int32(), "texts": pa.list_(pa.string()), "images": pa.list_(pa.string())}
        return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


class ShardWriter:
    """Writes rows of readers.TABLE_SCHEMA into a folder, batch by batch; `finish` makes it whole.

    Raises OSError: a file cannot be written.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._rows = 0
        self._group_starts = [0]
        self._shard_groups: list[int] = []
        self._domains: list[str] = []
        self._labels: list[np.ndarray] = []
        self._file: pq.ParquetWriter | None = None
        self._sink: pa.NativeFile | None = None

    @property
    def num_rows(self) -> int:
        return self._rows

    def write(self, batch: pa.RecordBatch) -> None:
        """The next rows, all of one domain."""
        if not batch.num_rows:
            return
        domain = batch.column("domain")[0].as_py()
        if self._file is None or domain != self._domains[-1] or self._rows - self._first >= SHARD_ROWS:
            self._begin(domain, batch)
        stored = pa.Table.from_batches([batch.select(_STORED)])
        rows = max(1, min(GROUP_ROWS, GROUP_BYTES * batch.num_rows // max(1, stored.nbytes)))
        for start in range(0, batch.num_rows, rows):
            group = stored.slice(start, rows)
            self._file.write_table(group, row_group_size=rows)  # type: ignore[union-attr]
            self._rows += group.num_rows
            self._group_starts.append(self._rows)
        self._labels.append(batch.column("label").to_numpy().astype(_LABEL))

    def finish(self) -> ShardedTable:
        """The table of all rows."""
        self._close()
        labels = np.concatenate([np.empty(0, _LABEL), *self._labels])
        index: dict[str, Any] = {
            "group_starts": np.array(self._group_starts, np.int64),
            "shard_groups": np.array([*self._shard_groups, len(self._group_starts) - 1], np.int64),
            "labels": labels,
        }
        content = io.BytesIO()  # a store's file cannot be written out of order
        np.savez(content, domains=np.array(json.dumps(self._domains)), **index)
        with open_output(storage.locate(self.folder, INDEX)) as file:
            file.write(content.getbuffer())
        return ShardedTable(
            str(self.folder),
            tuple(self._domains),
            index["group_starts"],
            index["shard_groups"],
            labels,
            0,
            self._rows,
        )

    def _begin(self, domain: str, batch: pa.RecordBatch) -> None:
        self._close()
        self._sink = open_output(shard_file(str(self.folder), len(self._domains)))
        # Ids and paths differ from row to row: a dictionary of them costs and saves nothing.
        schema = batch.select(_STORED).schema
        self._file = pq.ParquetWriter(
            self._sink, schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._first = self._rows
        self._shard_groups.append(len(self._group_starts) - 1)
        self._domains.append(domain)

    def _close(self) -> None:
        if self._file is not None and self._sink is not None:
            self._file.close()
            self._sink.close()
            self._file = self._sink = None


def shard_file(folder: str, shard: int) -> str:
    """Path or URI of a shard."""
    return posixpath.join(folder, f"{shard:06d}.parquet")


def open_output(location: Location) -> pa.NativeFile:
    """A new file. Raises OSError."""
    if not storage.is_uri(location):
        return pa.OSFile(str(location), "wb")
    filesystem, path = storage.open_filesystem(str(location))
    return filesystem.open_output_stream(path)


def labels_of(table: pa.Table | ShardedTable) -> np.ndarray:
    """The labels of a table's rows: int64, or as small as a sharded table has them."""
    if isinstance(table, ShardedTable):
        return table.labels
    return np.asarray(table["label"].to_numpy().astype(np.int64))


def in_memory(table: pa.Table | ShardedTable) -> pa.Table:
    """All rows, wherever they lie."""
    return table.to_table() if isinstance(table, ShardedTable) else table


def some_rows(table: pa.Table | ShardedTable, most: int) -> np.ndarray:
    """Row numbers, ascending, of at most `most` rows from all over a table: every nth one; of shards the first ones of groups."""
    rows = len(table)
    every = max(1, -(-rows // most))
    if every == 1 or not isinstance(table, ShardedTable):
        return np.arange(0, rows, every)
    together = min(64, most)
    starts = np.linspace(0, rows - together, max(1, most // together)).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(together))


_reading = threading.Lock()  # a Parquet file's reader has one place in the file


@functools.lru_cache(maxsize=_KEPT_FILES)
def _open(file: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_input(file if storage.is_uri(file) else Path(file)))


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _read_group(file: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    """A group of a shard; those that were read last stay in memory, as neighbouring tasks draw from the same ones."""
    with _reading:
        return _open(file).read_row_group(number, columns=list(columns), use_threads=False).combine_chunks()
