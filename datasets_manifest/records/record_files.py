"""Records files as they are: JSON, JSON lines, CSV, TSV and Parquet → raw records, none of it interpreted yet.

`read_records` yields one `RawRecord` after the other and checks only what belongs to the file's format. What a text, a
picture or a label may be is checked in `record_values.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.errors import InputError, composed, first_line, nearest, without_repeated_keys
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.keys import Columns, Reading, RecordFormat
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.class_folders import list_pictures
from datasets_manifest.records.tables import find_separator, read_rows
from datasets_manifest.records.text_files import GZIP, most_unpacked, read_text

_FORMAT_OF_SUFFIX: dict[str, RecordFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ROLES = ("id", "text", "image", "label")
_LISTS = ("text", "image")  # roles of which a record may have several

_FREE_ROWS = 1_000_000  # rows that a Parquet file of any size may hold: empty ones take next to no space
_ROWS_A_BYTE = 100


class RawRecord(NamedTuple):
    """One record as the file holds it; None is an absent or null value.

    position: the record's number in its file, from 1, or for files of lines its line number: "record 3", "line 4".
    """

    position: str
    id: Any
    text: Any
    image: Any
    label: Any


@dataclass
class FileFacts:
    """What reading found out about a split's files.

    columns: those that any of them has. notes, left_alone: sentences on what was assumed, on files that are no record.
    """

    columns: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def read_records(file: Location, reading: Reading, facts: FileFacts) -> Iterator[RawRecord]:
    """The records of one file, in order; `facts` is complete after the last.

    In a table (CSV, TSV) a record's pictures are one string still.

    Raises:
        InputError: the file cannot be read or is not of its format (naming the line), its format is not known, or
            it lacks a column that the manifest names.
    """
    form, columns = format_of(file) if reading.format == "auto" else reading.format, reading.columns
    if form == "folders":
        facts.columns.update(column_names(columns))
        pictures = list_pictures(file, facts.left_alone, allow_outside=reading.allow_outside_root)
        return (RawRecord(path, path, text, path, label) for path, text, label in pictures)
    if form == "parquet":
        return _read_parquet(file, columns, facts)
    table = is_table(form)
    text, note = read_text(file, reading.encoding, guess=table)
    facts.notes += [note] if note else []
    if table:
        return _read_table(file, text, reading.separator or ("\t" if form == "tsv" else None), columns, facts)
    parsed = _parse_json(file, text) if form == "json" else _parse_lines(file, text)
    return _from_dicts(parsed, file, columns, facts)


def read_plain(file: Location) -> tuple[list[dict[str, Any]], str | None, list[str]]:
    """All records of a file whose columns nobody has named yet: as mappings, a table's separator, and notes.

    Raises:
        InputError: as read_records.
    """
    form = format_of(file)
    if form == "parquet":
        try:
            with storage.open_input(file) as stream:
                return pq.read_table(stream).to_pylist(), None, []
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"not a readable Parquet file: {first_line(error)}", file=file) from None
    text, note = read_text(file, None, guess=is_table(form))
    notes = [note] if note else []
    if is_table(form):
        separator = "\t" if form == "tsv" else find_separator(file, text, set())
        rows = read_rows(file, text, separator)
        _, header = next(rows, ("", []))
        return [dict(zip(header, row, strict=True)) for _, row in rows], separator, notes
    parsed = _parse_json(file, text) if form == "json" else _parse_lines(file, text)
    return [record for _, record in parsed if isinstance(record, dict)], None, notes


def is_table(form: RecordFormat) -> bool:
    return form in ("csv", "tsv")


def format_of(file: Location) -> RecordFormat:
    """By the ending of the file's name. Raises InputError: not a known one."""
    name = str(file).lower()
    ending = storage.suffix(name.removesuffix(GZIP))
    form = _FORMAT_OF_SUFFIX.get(ending)
    if form is None or (form == "parquet" and name.endswith(GZIP)):
        wanted = f"a file name ending in {', '.join(_FORMAT_OF_SUFFIX)}, or `format` in the manifest"
        raise InputError("unknown format", file=file, value=storage.suffix(file), wanted=wanted)
    return form


def _parse_json(file: Location, text: str) -> Iterator[tuple[str, Any]]:
    content = _load_json(file, text, None)
    if not isinstance(content, list):
        hint = " (for one record a line: `format: jsonl`)" if isinstance(content, dict) else ""
        raise InputError("not a list of records", file=file, value=content, wanted=f"[{{...}}, {{...}}]{hint}")
    return ((f"record {number}", record) for number, record in enumerate(content, start=1))


def _parse_lines(file: Location, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and other signs which that takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.isspace():
            yield f"line {number}", _load_json(file, line, number)


def _load_json(file: Location, text: str, line: int | None) -> Any:
    """The value of a whole file (`line` None) or of one line of it."""
    field = None if line is None else f"line {line}"
    try:
        return json.loads(text, object_pairs_hook=without_repeated_keys)
    except json.JSONDecodeError as error:
        several = line is None and error.msg == "Extra data"
        wanted = "one list of records (for one record a line: `format: jsonl`)" if several else None
        field = field or f"line {error.lineno}"
        problem = f"not JSON: {error.msg} at column {error.colno}"
        raise InputError(problem, file=file, field=field, wanted=wanted) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        problem = "brackets nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"not JSON: {problem}", file=file, field=field) from None


def _from_dicts(
    records: Iterable[tuple[str, Any]], file: Location, columns: Columns, facts: FileFacts
) -> Iterator[RawRecord]:
    """Raw records of mappings. Which columns there are is known only after the last of them."""
    identity, text, image, label = column_names(columns)
    keys: set[str] = set()
    for position, record in records:
        if not isinstance(record, dict):
            raise InputError(
                "not a record", file=file, field=position, value=record, wanted='{"text": ..., "image": ...}'
            )
        if not all(map(str.isascii, record)):
            record = {composed(key): value for key, value in record.items()}
        keys.update(record)
        get = record.get
        yield RawRecord(position, get(identity), get(text), get(image), get(label))
    if keys:
        _check_columns(file, sorted(keys), columns)
    facts.columns |= keys


def _read_table(
    file: Location, text: str, separator: str | None, columns: Columns, facts: FileFacts
) -> Iterator[RawRecord]:
    separator = separator or find_separator(file, text, {*column_names(columns)[1:3]})
    rows = read_rows(file, text, separator)
    _, header = next(rows, ("", None))
    if header is None:
        return
    _check_columns(file, header, columns)
    facts.columns.update(header)
    picks = [header.index(name) if name in header else None for name in column_names(columns)]
    for position, row in rows:
        yield RawRecord(position, *(None if pick is None else row[pick] for pick in picks))


def _read_parquet(file: Location, columns: Columns, facts: FileFacts) -> Iterator[RawRecord]:
    names = column_names(columns)
    try:
        with storage.open_input(file) as stream, pq.ParquetFile(stream) as parquet:
            _check_size(file, stream.size(), parquet.metadata)
            stored = parquet.schema_arrow.names
            schema = pa.schema([field.with_name(composed(field.name)) for field in parquet.schema_arrow])
            _check_columns(file, schema.names, columns)
            _check_types(file, schema, columns)
            facts.columns.update(schema.names)
            number = 0
            for batch in parquet.iter_batches(columns=sorted(name for name in stored if composed(name) in names)):
                batch = batch.rename_columns([composed(name) for name in batch.schema.names])
                for values in zip(*(_values(batch, name) for name in names), strict=True):
                    number += 1
                    yield RawRecord(f"record {number}", *values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = first_line(error)
        raise InputError(f"not a readable Parquet file: {problem}", file=file) from None


def _check_size(file: Location, size: int, metadata: pq.FileMetaData) -> None:
    """Refuses a small file that claims to hold what no memory does."""
    claimed = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if claimed > most_unpacked(size) or metadata.num_rows > max(_FREE_ROWS, _ROWS_A_BYTE * size):
        found = f"{size:,} bytes for {metadata.num_rows:,} rows of {claimed:,} bytes"
        raise InputError("unpacks to far more than its size", file=file, value=found, wanted="a plain Parquet file")


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows


def _check_types(file: Location, schema: pa.Schema, columns: Columns) -> None:
    """Refuses Parquet columns of which no value could be used, before their values are made Python objects."""
    for role, name in zip(_ROLES, column_names(columns), strict=True):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_dictionary(kind) or (role in _LISTS and _is_list(kind)) else kind
        plain = any(
            test(inner)
            for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        )
        if not plain and not (role not in _LISTS and (pa.types.is_integer(inner) or pa.types.is_floating(inner))):
            wanted = "strings or lists of strings" if role in _LISTS else "strings or integers"
            raise InputError("wrong type", file=file, field=f"column {name}", value=str(kind), wanted=wanted)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def column_names(columns: Columns) -> tuple[str, str, str, str]:
    """The columns of id, text, image and label, in this order, with accents composed, as all columns are compared."""
    identity = "id" if columns.id is None else columns.id
    return composed(identity), composed(columns.text), composed(columns.image), composed(columns.label)


def _check_columns(file: Location, present: list[str], columns: Columns) -> None:
    """Refuses a file without texts and images, and a column that the manifest states but the file lacks or repeats.

    A stated name that is absent is a misspelling: without this check a whole column would silently count as missing.
    """
    shown = ", ".join(present[:20])
    for role, name in zip(_ROLES, column_names(columns), strict=True):
        if present.count(name) > 1:
            raise InputError("two columns of one name", file=file, field=f"column {name}", value=shown)
        stated = role in columns.model_fields_set and getattr(columns, role) is not None
        if stated and name not in present:
            close = nearest(name, present)
            wanted = f"one of {shown}" + (f" (nearest: {close})" if close is not None else "")
            raise InputError("no such column", file=file, field=f"columns.{role}", value=name, wanted=wanted)
    _, text, image, _ = column_names(columns)
    if text not in present and image not in present:
        wanted = f"a column `{text}` or `{image}`, or other names under `columns` in the manifest"
        raise InputError("neither texts nor images", file=file, value=shown, wanted=wanted)
