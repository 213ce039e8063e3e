"""A stand-in for `datasets.Dataset`: what of it is used here, with the same meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa


@dataclass
class ClassLabel:
    names: list[str]


class Dataset:
    """Rows in Arrow. A picture is a struct of bytes and path; with another format, a slice is an Arrow table."""

    def __init__(
        self, columns: dict[str, list[Any]], names: list[str] | None = None, format: str | None = None
    ) -> None:
        self._table = pa.table(columns)
        self._columns, self._names, self._format = columns, names, format
        self.features = {name: ClassLabel(names) if name == "label" and names else None for name in columns}
        self.longest_slice = 0

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def with_format(self, format: str) -> Dataset:
        other = Dataset(self._columns, self._names, format)
        other.noted = self  # type: ignore[attr-defined]
        return other

    def __getitem__(self, rows: slice) -> Any:
        assert self._format == "arrow", "pictures would be decoded"
        self.noted.longest_slice = max(self.noted.longest_slice, rows.stop - rows.start)  # type: ignore[attr-defined]
        return self._table.slice(rows.start, rows.stop - rows.start)

    def to_pandas(self) -> pd.DataFrame:
        return self._table.to_pandas()
