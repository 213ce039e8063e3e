"""The stream without Ray: rows are encoded in this process, in order, when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_manifest.records.sharded_table import ShardedTable
from datasets_manifest.stream.encode import Encoding, HostBatch, collate, encode_rows, index_table
from datasets_manifest.stream.plan import StepSlice


@dataclass(frozen=True)
class LocalStream:
    """Reads rows of a table of readers.TABLE_SCHEMA; gives the same batches as datasets_manifest.stream.ray_stream.Stream."""

    table: pa.Table | ShardedTable

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch]:
        """The batches of `slices`, in order; a batch's rows are domain after domain."""
        return (self._encode(s.rows_DB.ravel(), s.positions_DB.ravel(), encoding) for s in slices)

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch]:
        """The weak views of rows, batch by batch."""
        return (self._encode(rows, np.zeros(len(rows), np.int64), encoding) for rows in batches)

    def _encode(self, rows: np.ndarray, positions: np.ndarray, encoding: Encoding) -> HostBatch:
        encoded = encode_rows(index_table(np.zeros(len(rows)), rows, positions), self.table, encoding)
        return collate(encoded, encoding)
