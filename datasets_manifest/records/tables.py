"""CSV and TSV → rows of cells, with their line numbers.

Read by Python's csv module: it knows the line of a row whose cells hold line ends, and a row with too few cells is an
error for us, not a row with empty ones. The separator is not looked for by `csv.Sniffer`, which counts signs in prose.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from datasets_manifest.errors import InputError, composed
from datasets_manifest.manifest.storage import Location

SEPARATORS = (",", ";", "\t", "|")
_HEADER = 2**20  # characters in which a header ends
_EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")  # a first line by which Excel is told the separator

csv.field_size_limit(2**31 - 1)  # the module's own limit is 131,072 characters; a long text is no fault


def find_separator(file: Location, text: str, wanted: set[str]) -> str:
    """The separator with which the header has a column of `wanted`; without such a one that of the most columns.

    Raises:
        InputError: two separators give such a column.
    """
    if (stated := _EXCEL_SEPARATOR.match(text)) is not None:
        return stated[1]
    headers = {separator: [_name(cell) for cell in _header(text, separator)] for separator in SEPARATORS}
    fitting = [separator for separator, cells in headers.items() if len(cells) > 1 and wanted & set(cells)]
    if len(fitting) > 1:
        problem = f"the header has columns with {' and with '.join(map(repr, fitting))} as separator"
        raise InputError(problem, file=file, field="line 1", wanted="`separator` in the manifest")
    return fitting[0] if fitting else max(SEPARATORS, key=lambda separator: len(headers[separator]))


def _header(text: str, separator: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(text[:_HEADER], newline=""), delimiter=separator)
        return next((row for row in rows if row), [])
    except csv.Error:
        return []


def _name(cell: str) -> str:
    """Of a column."""
    return composed(cell.strip())


def read_rows(file: Location, text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """("line 4", cells) of each row, the header, whose cells are stripped, first. Empty lines are left out.

    Raises:
        InputError: a row with another number of cells than the header, or quotes that cannot be understood.
    """
    blank_before_quote = re.search(rf'(?:^|{re.escape(separator)})[ \t]+"', text, re.MULTILINE) is not None
    header = _header(text, separator)
    excel = _EXCEL_SEPARATOR.match(text) is not None
    # `a, b, c`: the blank belongs to the separator. Without quotes after it, it stays what it always was: part of a cell.
    skip = blank_before_quote and len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=skip)
    joined, width, start = "\ufeff" in text, 0, 1
    try:
        for row in rows:
            position, start = f"line {start}", rows.line_num + 1
            if not row or (excel and position == "line 1"):
                continue
            if joined and (row[0].startswith("\ufeff") or (not width and "\ufeff" in "".join(row))):
                wanted = "one byte order mark, at the file's beginning; were two files joined?"
                raise InputError("a byte order mark inside the file", file=file, field=position, wanted=wanted)
            if blank_before_quote and not skip:
                _refuse_blank_before_quote(file, position, row, len(row) == (width or len(row)))
            if not width:
                width, header = len(row), [_name(cell) for cell in row]
                yield position, header
                continue
            if len(row) != width:
                wanted = f"{width} cells like the header; put cells that hold the separator {separator!r} in quotes"
                raise InputError("wrong number of cells", file=file, field=position, value=len(row), wanted=wanted)
            if row[0].strip() == header[0] and width > 1 and [_name(cell) for cell in row] == header:
                wanted = "one header, in the first line; were two files joined?"
                raise InputError("the header stands here again", file=file, field=position, wanted=wanted)
            yield position, row
    except csv.Error as error:
        position = f"line {rows.line_num}"
        wanted = 'a cell with quotes in it is written as "say ""hi"""'
        problem = f"not a {separator!r}-separated table: {error}"
        raise InputError(problem, file=file, field=position, wanted=wanted) from None


def _refuse_blank_before_quote(file: Location, position: str, row: list[str], whole: bool) -> None:
    """` "hi"`: CSV takes such quotes for part of the text, and a separator between them for the end of the cell."""
    for number, cell in enumerate(row, start=1):
        inner = cell.strip()
        if cell[:1].isspace() and inner.startswith('"') and (not whole or (len(inner) > 1 and inner.endswith('"'))):
            wanted = "a quote right after the separator"
            raise InputError(
                "a blank before the quote", file=file, field=f"{position}, column {number}", value=cell, wanted=wanted
            )
