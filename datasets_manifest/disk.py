"""Errors of writing, with the place, the reason, the free bytes and those needed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# safetensors, pyarrow and SQLite have words only, and torch says no more than that writing failed.
_FULL_IN_WORDS = re.compile(r"No space left|[Dd]isk quota|disk is full|os error (28|122)\b|errno (28|122)\b")
_TOO_LARGE_IN_WORDS = re.compile(r"os error 27\b|errno 27\b")
_LITTLE = 10**8  # bytes; where fewer are free, a disk is called full though nobody knows what was needed
_LEAST_FREE = 2**16  # bytes; where fewer are free, a failure to write needs no other reason


class CannotWrite(OSError):
    """A file or folder could not be written. The message is one line that says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


def cannot_write(place: Path, error: Exception, *, written: int = 0, needed: int | None = None) -> CannotWrite | None:
    """An error of writing in words; None if it is of another kind.

    Args:
        place: file or folder that was to be written.
        written: bytes of it that were written before the disk was full.
        needed: bytes it takes in all, where that is known.
    """
    number = getattr(error, "errno", None)
    there = nearest_folder(place.absolute().parent)
    if number == errno.ENAMETOOLONG:
        longest = max(place.absolute().parts, key=lambda part: len(os.fsencode(part)))
        bytes_ = len(os.fsencode(longest))
        return CannotWrite(number, f"{longest[:40]}…: {os.strerror(number)}: {bytes_} bytes; give a shorter name")
    if number in _REFUSED:
        problem = os.strerror(number)
        words = f"{place}: cannot be written ({problem}); make {there} writable for this user, or name another folder"
        return CannotWrite(number, words)
    if number == errno.EFBIG or _TOO_LARGE_IN_WORDS.search(str(error)):
        words = f"{place}: {os.strerror(errno.EFBIG)}: this shell (ulimit -f) or the disk's file system limits the size of a file"
        return CannotWrite(errno.EFBIG, f"{words}; raise the limit, or name another folder")
    free = shutil.disk_usage(there).free
    if number in _FULL or _FULL_IN_WORDS.search(str(error)) or (_is_of_writing(error) and free < _LEAST_FREE):
        number = number if number in _FULL else errno.ENOSPC
        numbers = ""
        # With room on this disk a quota is used up, or another disk is full.
        if number == errno.ENOSPC and (written or free < (needed or _LITTLE)):
            size = megabytes(needed) if needed else f"more than {megabytes(max(written, free))}"
            numbers = f": {megabytes(free)} free, {size} needed"
        words = f"{place}: {os.strerror(number)}{numbers}; make room in {there}, then give the command again"
        return CannotWrite(number, words)
    return None


def nearest_folder(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if os.path.exists(place))


def megabytes(size: float) -> str:
    """`1,234 MB`, with a decimal where it matters."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _is_of_writing(error: Exception) -> bool:
    return isinstance(error, OSError) or "writ" in str(error)
