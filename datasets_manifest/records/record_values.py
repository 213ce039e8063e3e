"""What a value in a record may be: ids, texts, image paths and labels as users write them → as the table holds them.

Each function gets one raw value and gives the table's value back, or raises a ValueFault. A label is never guessed.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from datasets_manifest.errors import InputError, composed, nearest
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.image_template import Existing, fill
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.record_files import RawRecord

UNLABELLED = -1

TABLE_SEPARATOR = "|"  # between the paths of one CSV or TSV cell, where the manifest states none

_INDEX = re.compile(r"[0-9]{1,9}(\.0+)?", re.ASCII)  # "2", and "2.0" as pandas writes integers beside empty cells
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")  # of a cut emoji: a JSON file can hold them, UTF-8 cannot


class ValueFault(Exception):
    """A value that cannot be used. `located` adds file and record and makes an InputError of it."""

    def __init__(self, column: str, problem: str, value: Any, wanted: str) -> None:
        super().__init__(problem)
        self.column, self.problem, self.value, self.wanted = column, problem, value, wanted

    def located(self, file: Location, record: RawRecord) -> InputError:
        """With file, record and column."""
        known = isinstance(record.id, str | int) and record.id != ""
        position = f"{record.position} (id {str(record.id)[:80]!r})" if known else record.position
        field = f"{position}, {self.column}"
        return InputError(self.problem, file=file, field=field, value=self.value, wanted=self.wanted)


def is_nothing(value: Any) -> bool:
    """Whether a value says that there is none: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def read_id(value: Any) -> str:
    """The id as a string, "" if there is none. 17.0, as pandas writes integers beside empty cells, is 17. Raises ValueFault."""
    if is_nothing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        identity = value.strip()
        if not _is_unicode(identity):
            raise ValueFault("id", "an incomplete character", value, "complete Unicode characters")
        return identity
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueFault("id", "not an id", value, "a string or an integer")


def read_texts(value: Any) -> list[str]:
    """The sentences, without nulls and blank ones; incomplete characters (lone surrogates) are replaced by U+FFFD."""
    texts = _read_strings(value, "text")
    return [text if _is_unicode(text) else _HALF_CHARACTERS.sub("\ufffd", text) for text in texts]


def split_paths(value: Any, separator: str | None) -> Any:
    """A string that holds several paths → a list of them; anything else as it is.

    Several paths are a JSON list, a list as pandas writes one into a CSV (`['a.jpg', 'b.jpg']`), or parted by `separator`.
    """
    if not isinstance(value, str) or separator is None:
        return value
    cell = value.strip()
    if cell.startswith("[") and cell.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                paths = parse(cell)
                if isinstance(paths, list) and all(isinstance(path, str) for path in paths):
                    return paths
    return [path.strip() for path in cell.split(separator)]


class PathReader:
    """Image paths of records → absolute paths or URIs inside the image root, unless the split allows more.

    Records often come from others, so a path in them must not reach the rest of the disk or of the store; neither must a
    symbolic link that came with the pictures. The root itself may be a link.
    """

    def __init__(
        self, root: Location, *, template: str | None = None, allow_absolute: bool, allow_outside_root: bool
    ) -> None:
        self._remote = isinstance(root, str)
        self._normalise: Callable[[str], str] = storage.normalise if self._remote else os.path.normpath
        self._root = self._normalise(str(root))
        self._prefix = self._root.rstrip("/") + "/"
        self._real_prefix = "" if self._remote else os.path.realpath(self._root).rstrip("/") + "/"
        self._real_folders: dict[str, str] = {}
        self._template, self._existing = template, Existing()
        self._allow_absolute, self._allow_outside_root = allow_absolute, allow_outside_root

    def read(self, value: Any) -> list[str]:
        """The record's image paths, made absolute. Raises ValueFault for one that cannot be read or is not allowed."""
        return [path for entry in _read_strings(value, "image") for path in self._paths(entry)]

    def _paths(self, entry: str) -> list[str]:
        if self._template is None:
            return [self._resolve(entry)]
        paths = [self._resolve(path) for path in fill(self._template, entry)]
        return paths if len(paths) == 1 else self._existing.keep(paths)

    def _resolve(self, path: str) -> str:
        if "\0" in path or not _is_unicode(path):
            raise ValueFault("image", "not the path of a file", path, "a path relative to the image root")
        if storage.is_uri(path) or path.startswith("/"):
            return self._resolve_absolute(path)
        full = self._normalise(self._prefix + path)
        full = full if self._remote else storage.as_stored(full)
        # Normalising a URI stops `..` at the bucket, so a URI that leaves the root is found by its written form.
        inside = (full + "/").startswith(self._prefix) and not (self._remote and _climbs(path))
        if not self._allow_outside_root and not (inside and self._stays(full)):
            wanted = f"a path inside {self._root} (or `allow_outside_root: true` in the split)"
            problem = "a symbolic link leads out of the image root" if inside else "the path leaves the image root"
            raise ValueFault("image", problem, path, wanted)
        return full

    def _resolve_absolute(self, path: str) -> str:
        if not self._allow_absolute:
            wanted = "a path relative to the image root (or `allow_absolute: true` in the split)"
            raise ValueFault("image", "an absolute path", path, wanted)
        if not storage.is_uri(path):
            return storage.as_stored(os.path.normpath(path))
        if path.partition("://")[0].lower() not in storage.SCHEMES:
            wanted = ", ".join(f"{scheme}://…" for scheme in storage.SCHEMES) + " or a path"
            raise ValueFault("image", "not a location that can be read", path, wanted)
        return storage.normalise(path)

    def _stays(self, full: str) -> bool:
        """Whether following symbolic links from `full` ends inside the root; each folder is followed once."""
        if self._remote or full == self._root:
            return True
        folder, name = os.path.split(full)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._real_folders[folder], name)
        try:
            real = os.path.realpath(real) if os.path.islink(real) else real
        except OSError:  # links in a circle: no picture will be found there
            return False
        return (real + "/").startswith(self._real_prefix)


def _climbs(path: str) -> bool:
    """Whether `..` leads above where the path starts."""
    return os.path.normpath(path).split("/")[0] == ".."


class LabelReader:
    """Labels → class indexes.

    Accepted: what the manifest's `labels` maps; a class name; the index of a class, as an integer or as a string of one;
    null, NaN, "" or nothing for unlabelled. If class names are themselves numbers other than their own index (stars: "1"
    to "5"), a number could mean either, so only names are accepted, written as strings. Composed and decomposed Unicode
    (é as one sign or two) are the same.
    """

    def __init__(self, classes: Sequence[str], labels: Mapping[str | int, str | None] | None = None) -> None:
        self._classes = list(classes)
        self._index_of = {_normal(name): index for index, name in enumerate(classes)}
        self._mapped = {
            _normal(str(found)): UNLABELLED if name is None else self._index_of[_normal(name)]
            for found, name in (labels or {}).items()
        }
        self._only_names = any(_INDEX.fullmatch(name) and name != str(index) for index, name in enumerate(classes))

    def read(self, value: Any) -> int:
        """The class index, or -1 for unlabelled. Raises ValueFault for anything else."""
        if is_nothing(value):
            return UNLABELLED
        if isinstance(value, str):
            return self._read_string(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._fault("not a class", value)
        if self._mapped and abs(value) < 10**9 and str(value) in self._mapped:
            return self._mapped[str(value)]
        if self._only_names:
            raise self._fault("could be an index or a class name; write the name as a string", value)
        if not 0 <= value < len(self._classes):
            raise self._fault("no such class", value)
        return value

    def _read_string(self, value: str) -> int:
        name = _normal(value)
        if name in self._mapped:
            return self._mapped[name]
        if not name:
            return UNLABELLED
        if name in self._index_of:
            return self._index_of[name]
        if _INDEX.fullmatch(name):
            index = int(name.partition(".")[0])
            if str(index) in self._mapped:
                return self._mapped[str(index)]
            if not self._only_names and index < len(self._classes):
                return index
        raise self._fault("no such class", value)

    def _fault(self, problem: str, value: Any) -> ValueFault:
        names = ", ".join(map(repr, self._classes[:20])) + (", …" if len(self._classes) > 20 else "")
        close = nearest(value, self._classes) if isinstance(value, str) else None
        hint = f" (nearest: {close!r})" if close is not None else ""
        if close is not None and close.casefold() == value.strip().casefold():
            hint = f" (nearest: {close!r}; upper and lower case differ: `labels: {{{value.strip()}: {close}}}` maps it)"
        indexes = "" if self._only_names else f", an index from 0 to {len(self._classes) - 1}"
        return ValueFault("label", problem, value, f"one of {names}{hint}{indexes}, or nothing for unlabelled")


def _read_strings(value: Any, column: str) -> list[str]:
    """A string or a list of strings as a list, without nulls and blank strings."""
    if is_nothing(value):
        return []
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise ValueFault(column, "wrong type", value, "a string or a list of strings")
    for item in strings:
        if not isinstance(item, str) and not is_nothing(item):
            raise ValueFault(column, "wrong type in the list", item, "strings")
    return [item for item in strings if isinstance(item, str) and item and not item.isspace()]


def _normal(text: str) -> str:
    return composed(text.strip())


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    return text.isascii() or _HALF_CHARACTERS.search(text) is None
