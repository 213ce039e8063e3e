"""Tables of predictions as files, and predictions that are withheld where the model is not sure enough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from datasets_manifest.errors import InputError, nearest
from datasets_manifest.files import whole_file

SUFFIXES = (".csv", ".jsonl", ".parquet")


def is_file_output(out: str, field: str = "--out") -> bool:
    """Whether `out` means one file; otherwise a folder: a name without suffix, with `/` at its end, or a folder that is there.

    Raises:
        InputError: another suffix.
    """
    path = Path(out)
    if out.endswith("/") or path.is_dir() or not path.suffix:
        return False
    if path.suffix.lower() not in SUFFIXES:
        close = nearest(path.suffix.lower(), SUFFIXES)
        wanted = f"a file {', '.join(SUFFIXES)}, or a folder/" + (f" (nearest: {close})" if close else "")
        raise InputError("predictions are not written in this form", field=field, value=out, wanted=wanted)
    return True


def write_predictions(table: pa.Table, file: Path) -> None:
    """Write `table` whole or not at all, by the file's suffix; folders are made. In CSV a list is JSON in its cell."""
    with whole_file(file) as draft:
        if file.suffix.lower() == ".parquet":
            pq.write_table(table, draft)
        elif file.suffix.lower() == ".jsonl":
            with draft.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
        else:
            pa.csv.write_csv(_flat(table), draft)


def _flat(table: pa.Table) -> pa.Table:
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            cells = [
                None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in table[number].to_pylist()
            ]
            table = table.set_column(number, field.name, pa.array(cells, pa.string()))
    return table


def withhold(table: pa.Table, below: float) -> pa.Table:
    """The table without labels where `confidence` is smaller than `below`, and a column `abstained` that says so."""
    abstained = pc.fill_null(pc.less(table["confidence"], below), False)
    label = table.schema.get_field_index("label")
    labels = pc.if_else(abstained, pa.scalar(None, pa.string()), table["label"])
    table = table.set_column(label, "label", labels)
    return table.add_column(table.schema.get_field_index("confidence") + 1, "abstained", abstained)


def count_withheld(table: pa.Table) -> int | None:
    """How many rows have no label because the model was not sure enough; None if that was not asked."""
    return int(np.sum(table["abstained"].to_numpy())) if "abstained" in table.column_names else None
