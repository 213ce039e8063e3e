"""Names of local files that were written otherwise than the file system has them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from urllib.parse import unquote

from datasets_manifest.errors import composed


def as_stored(path: str) -> str:
    """The path with accents composed as the file system has them; as it is if nothing is there either way."""
    if path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or not folder:
        return path
    folder = as_stored(folder)
    return os.path.join(folder, _composed_names(folder).get(composed(name), name))


def _composed_names(folder: str) -> dict[str, str]:
    """The names in a folder by their composed form; empty if there is no such folder."""
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=16)
def _listed(folder: str, changed: int) -> dict[str, str]:
    return {composed(name): name for name in os.listdir(folder)}


_WRITINGS: tuple[tuple[Callable[[str], str], str], ...] = (
    (lambda path: path, ""),
    (lambda path: path.replace("\\", "/"), "with / for \\"),
    (unquote, "without % signs"),
    (lambda path: os.path.splitext(path.rstrip())[0] + ".*", "with another ending"),
)


def similar_file(path: str) -> str | None:
    """For a local path that is no file: the file that was probably meant, and how the two differ; None if there is none."""
    if "://" in path:
        return None
    for write, difference in _WRITINGS:
        other = write(path)
        found = _alike(other) if other != path or not difference else None
        if found is not None and found != path:
            differences = [difference, _difference(found, other)]
            return f"{found} is there, {' and '.join(filter(None, differences))}"
    return None


def _difference(found: str, written: str) -> str:
    if written.endswith(".*"):
        found, written = os.path.splitext(found)[0], written.removesuffix(".*")
    if found == written:
        return ""
    if written.rstrip() == found:
        return "without the blank at the end"
    return (
        "blanks differ"
        if found.split() == written.split() or _bare(found) == _bare(written)
        else "upper and lower case differ"
    )


def _bare(path: str) -> str:
    return "".join(path.split())


def _alike(path: str) -> str | None:
    """The file whose path is this one but for case, blanks at the ends of names, and accents; `.*` is any ending."""
    names = [name for name in path.split("/") if name]
    found = "/" if path.startswith("/") else ""
    for number, name in enumerate(names):
        any_ending = number == len(names) - 1 and name.endswith(".*")
        if not any_ending and os.path.lexists(os.path.join(found, name)):
            found = os.path.join(found, name)
            continue
        try:
            listed = sorted(os.listdir(found or "."))
        except (OSError, ValueError):
            return None
        forms = {os.path.splitext(each)[0] + ".*" if any_ending else each: each for each in reversed(listed)}
        match = next((each for form, each in forms.items() if _folded(form) == _folded(name)), None)
        if match is None:
            return None
        found = os.path.join(found, match)
    return found if os.path.isfile(found) else None


def _folded(name: str) -> str:
    return composed(name).strip().casefold()
