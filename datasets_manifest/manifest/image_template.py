"""Templates that turn what a record calls its picture into the path of the file, e.g. `photos/{first2}/{stem}.jpg`.

For the entry `2014/00a1-x.jpg`: {entry} is all of it, {file} `00a1-x.jpg`, {folder} `2014`, {stem} `00a1-x`, {first2} `00`
(of the stem) and {part1} `2014` (of the entry, up to the first of `/`, `-`, `_` and `.`). {k} is 1 to 10: every file
that exists is a picture of the record.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from string import Formatter

from datasets_manifest.errors import nearest
from datasets_manifest.manifest import storage

COUNTER = "k"
COUNTS = range(1, 11)  # the published code looks for no more of a sample's pictures
_FIELDS: dict[str, Callable[[str], str]] = {
    "entry": lambda entry: entry,
    "file": posixpath.basename,
    "folder": posixpath.dirname,
    "stem": lambda entry: _stem(entry),
    "first2": lambda entry: _stem(entry)[:2],
    "part1": lambda entry: re.split(r"[/_.-]", entry, maxsplit=1)[0],
}


def _stem(entry: str) -> str:
    return posixpath.splitext(posixpath.basename(entry))[0]


def check_template(template: str) -> str:
    """The template as it is. Raises ValueError: it does not parse, knows no such field, or names no part of the entry."""
    known = [*_FIELDS, COUNTER]
    fields = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if name not in known or form or conversion:
            close = nearest(name, known)
            hint = f" (nearest: {{{close}}})" if close else ""
            raise ValueError(f"{{{name}}} is no field of an image template; wanted one of {', '.join(known)}{hint}")
        fields.append(name)
    if not set(fields) - {COUNTER, "part1", "first2", "folder"}:
        raise ValueError("names no {entry}, {file} or {stem}: all records would have the same picture")
    return template


def fill(template: str, entry: str) -> list[str]:
    """The paths a template gives for an entry: one, or ten where it counts."""
    values = {name: value(entry) for name, value in _FIELDS.items()}
    if f"{{{COUNTER}}}" not in template:
        return [template.format(**values)]
    return [template.format(**values, k=k) for k in COUNTS]


class Existing:
    """Which of an entry's numbered files exist; a folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, set[str]] = {}

    def keep(self, paths: list[str]) -> list[str]:
        """Those that exist; the first one if none does, so that the record counts as lacking its picture.

        Raises:
            OSError: an object store is unreachable.
        """
        return [path for path in paths if self._exists(path)] or paths[:1]

    def _exists(self, path: str) -> bool:
        if not storage.is_uri(path):
            return os.path.isfile(path)
        folder, _, name = path.rpartition("/")
        if folder not in self._listed:
            found = storage.list_files(folder) if storage.is_folder(folder) else []
            self._listed[folder] = {file for file in found if "/" not in file}
        return name in self._listed[folder]
