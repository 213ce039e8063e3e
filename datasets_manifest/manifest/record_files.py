"""Records files as they are: JSON, JSON lines, CSV, TSV and Parquet → raw records, none of it interpreted yet.

The text formats may be packed with gzip (`train.jsonl.gz`); a file that unpacks to far more than such files do is refused.

`read_records` yields one `RawRecord` after the other and checks only what belongs to the file's format. What a text, a
picture or a label may be is checked in `record_values.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.errors import InputError, first_line, nearest
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.class_folders import list_pictures
from datasets_manifest.manifest.schema import Columns, RecordFormat
from datasets_manifest.manifest.storage import Location

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
_PATH_SEPARATOR = "|"  # between the image paths of one CSV or TSV cell

_GZIP = ".gz"
_LEAST_LIMIT = 64 * 2**20  # bytes a packed file may always unpack to, and
_MOST_RATIO = 100  # how many times its own size a larger one may: texts pack to a third or a tenth
_FREE_ROWS = 1_000_000  # rows that a Parquet file of any size may hold: empty ones take next to no space


class RawRecord(NamedTuple):
    """One record as the file holds it; None is an absent or null value.

    position: the record's number in its file, from 1, or for files of lines its line number: "record 3", "line 4".
    """

    position: str
    id: Any
    text: Any
    image: Any
    label: Any


def read_records(file: Location, form: RecordFormat, columns: Columns) -> Iterator[RawRecord]:
    """The records of one file, in order.

    Raises:
        InputError: the file cannot be read or is not of its format (naming the line), its format is not known, or
            it lacks a column that the manifest names.
    """
    form = _detect(file) if form == "auto" else form
    if form == "folders":
        pictures = list_pictures(file)
        return (RawRecord(path, path, text, path, label) for path, text, label in pictures)
    if form == "parquet":
        return _read_parquet(file, columns)
    text = _read_text(file)
    if form == "json":
        return _from_dicts(_parse_json(file, text), file, columns)
    if form == "jsonl":
        return _from_dicts(_parse_lines(file, text), file, columns)
    return _read_table(file, text, "\t" if form == "tsv" else ",", columns)


def _detect(file: Location) -> RecordFormat:
    name = str(file).lower()
    ending = storage.suffix(name.removesuffix(_GZIP))
    form = _FORMAT_OF_SUFFIX.get(ending)
    if form is None or (form == "parquet" and name.endswith(_GZIP)):
        wanted = f"a file name ending in {', '.join(_FORMAT_OF_SUFFIX)}, or `format` in the manifest"
        raise InputError("unknown format", file=file, value=storage.suffix(file), wanted=wanted)
    return form


def _read_text(file: Location) -> str:
    """The file as text without a byte order mark and with plain line ends."""
    try:
        content = storage.read_bytes(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    if storage.suffix(file) == _GZIP:
        content = _unpack(file, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = f"line {_line_of(content, error.start)}"
        problem = f"not UTF-8: byte 0x{content[error.start]:02x}"
        raise InputError(problem, file=file, field=line, wanted="a file saved as UTF-8") from None
    if "\0" in text:
        # Most often UTF-16; otherwise a damaged or binary file. Either way the values around it are not to be trusted.
        line = f"line {_line_of(content, content.index(0))}"
        raise InputError("holds a NUL byte", file=file, field=line, wanted="a text file saved as UTF-8")
    return text


def _unpack(file: Location, packed: bytes) -> bytes:
    limit = _unpacked_limit(len(packed))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            content = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be unpacked ({error})", file=file, wanted="a complete gzip file") from None
    if len(content) > limit:
        wanted = f"at most {limit:,} bytes when unpacked; unpack it yourself if it is meant so"
        raise InputError("unpacks to far more than its size", file=file, value=len(packed), wanted=wanted)
    return content


def _unpacked_limit(packed_bytes: int) -> int:
    return max(_LEAST_LIMIT, _MOST_RATIO * packed_bytes)


def _line_of(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


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
        return json.loads(text)
    except json.JSONDecodeError as error:
        several = line is None and error.msg == "Extra data"
        wanted = "one list of records (for one record a line: `format: jsonl`)" if several else None
        field = field or f"line {error.lineno}"
        problem = f"not JSON: {error.msg} at column {error.colno}"
        raise InputError(problem, file=file, field=field, wanted=wanted) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        problem = "brackets nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"not JSON: {problem}", file=file, field=field) from None


def _from_dicts(records: Iterable[tuple[str, Any]], file: Location, columns: Columns) -> Iterator[RawRecord]:
    """Raw records of mappings. Which columns there are is known only after the last of them."""
    identity, text, image, label = _names(columns)
    explicit = {getattr(columns, role) for role in columns.model_fields_set} - {None}
    keys: set[str] = set()
    complete = False  # `keys` has every column that is needed
    for position, record in records:
        if not isinstance(record, dict):
            raise InputError(
                "not a record", file=file, field=position, value=record, wanted='{"text": ..., "image": ...}'
            )
        if not complete:
            keys.update(record)
            complete = explicit <= keys and (text in keys or image in keys)
        get = record.get
        yield RawRecord(position, get(identity), get(text), get(image), get(label))
    if keys and not complete:
        _check_columns(file, sorted(keys), columns)


def _read_table(file: Location, text: str, delimiter: str, columns: Columns) -> Iterator[RawRecord]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        picks = _header_positions(file, header, columns)
        start = rows.line_num + 1
        for row in rows:
            position, start = f"line {start}", rows.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                wanted = f"{len(header)} cells like the header; put cells that hold the separator in quotes"
                raise InputError("wrong number of cells", file=file, field=position, value=len(row), wanted=wanted)
            identity, sentence, paths, label = (None if pick is None else row[pick] for pick in picks)
            images = None if paths is None else [path.strip() for path in paths.split(_PATH_SEPARATOR)]
            yield RawRecord(position, identity, sentence, images, label)
    except csv.Error as error:
        position = f"line {rows.line_num}"
        hint = 'a cell with quotes in it is written as "say ""hi"""'
        raise InputError(
            f"not a {delimiter!r}-separated table: {error}", file=file, field=position, wanted=hint
        ) from None


def _header_positions(file: Location, header: list[str], columns: Columns) -> list[int | None]:
    """The index of id, text, image and label in a row; None for a column that is absent."""
    present = [name.strip() for name in header]
    _check_columns(file, present, columns)
    return [present.index(name) if name in present else None for name in _names(columns)]


def _read_parquet(file: Location, columns: Columns) -> Iterator[RawRecord]:
    names = _names(columns)
    try:
        with storage.open_input(file) as stream, pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            _check_size(file, stream.size(), parquet.metadata)
            _check_columns(file, schema.names, columns)
            _check_types(file, schema, columns)
            number = 0
            for batch in parquet.iter_batches(columns=sorted(set(names) & set(schema.names))):
                for values in zip(*(_values(batch, name) for name in names), strict=True):
                    number += 1
                    yield RawRecord(f"record {number}", *values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = first_line(error)
        raise InputError(f"not a readable Parquet file: {problem}", file=file) from None


def _check_size(file: Location, size: int, metadata: pq.FileMetaData) -> None:
    """Refuses a small file that claims to hold what no memory does."""
    claimed = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if claimed > _unpacked_limit(size) or metadata.num_rows > max(_FREE_ROWS, _MOST_RATIO * size):
        found = f"{size:,} bytes for {metadata.num_rows:,} rows of {claimed:,} bytes"
        raise InputError("unpacks to far more than its size", file=file, value=found, wanted="a plain Parquet file")


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows


def _check_types(file: Location, schema: pa.Schema, columns: Columns) -> None:
    """Refuses Parquet columns of which no value could be used, before their values are made Python objects."""
    for role, name in zip(_ROLES, _names(columns), strict=True):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_dictionary(kind) or (role in _LISTS and _is_list(kind)) else kind
        plain = pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)
        if not plain and not (role not in _LISTS and (pa.types.is_integer(inner) or pa.types.is_floating(inner))):
            wanted = "strings or lists of strings" if role in _LISTS else "strings or integers"
            raise InputError("wrong type", file=file, field=f"column {name}", value=str(kind), wanted=wanted)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _names(columns: Columns) -> tuple[str, str, str, str]:
    """The columns of id, text, image and label, in this order."""
    return ("id" if columns.id is None else columns.id, columns.text, columns.image, columns.label)


def _check_columns(file: Location, present: list[str], columns: Columns) -> None:
    """Refuses a file without texts and images, and a column that the manifest states but the file lacks or repeats.

    A stated name that is absent is a misspelling: without this check a whole column would silently count as missing.
    """
    shown = ", ".join(present[:20])
    for role, name in zip(_ROLES, _names(columns), strict=True):
        if present.count(name) > 1:
            raise InputError("two columns of one name", file=file, field=f"column {name}", value=shown)
        stated = role in columns.model_fields_set and getattr(columns, role) is not None
        if stated and name not in present:
            close = nearest(name, present)
            wanted = f"one of {shown}" + (f" (nearest: {close})" if close is not None else "")
            raise InputError("no such column", file=file, field=f"columns.{role}", value=name, wanted=wanted)
    if columns.text not in present and columns.image not in present:
        wanted = f"a column `{columns.text}` or `{columns.image}`, or other names under `columns` in the manifest"
        raise InputError("neither texts nor images", file=file, value=shown, wanted=wanted)
