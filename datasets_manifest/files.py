"""Files and folders that appear whole or not at all: written under a name of their own, renamed when complete. JSON files,
and the checksums of a folder.

A draft's name starts with a dot and has a random part, so two writers of one file never meet in a draft. Its writer holds a
lock on it, which ends with the process: where the file system has locks, the next writer of the same file removes what a
killed one left, and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets_manifest.disk import cannot_write, nearest_folder
from datasets_manifest.errors import InputError

_log = logging.getLogger(__name__)
_SURELY_LOCKED_S = 10.0  # age of a draft after which a living writer has its lock


_ADDRESSES = {"s3:", "gs:", "hf:", "http:", "https:", "file:"}  # what begins an address, as the part of a path


def refuse_address(place: Path, field: str | None = None) -> None:
    """Refuse an address that was taken as a path: a folder named `s3:` would be made here. Raises InputError."""
    inside = place
    with contextlib.suppress(OSError, ValueError):  # there is no working folder any more; or it is elsewhere
        inside = place.relative_to(Path.cwd())
    if inside.parts[:1] and inside.parts[0] in _ADDRESSES:
        wanted = "a folder or file of this machine; `m2can data pack`, `m2can features` and run.storage take addresses"
        raise InputError("is an address, where nothing can be written", field=field, value=str(place), wanted=wanted)


def require_folder(folder: Path, field: str) -> None:
    """Look whether a folder can be written, or made. Nothing is written.

    Args:
        field: that names it, for the error.

    Raises:
        InputError: it cannot, and why.
    """
    refuse_address(folder, field)
    place = nearest_folder(folder)
    if not place.is_dir():
        raise InputError("is a file", field=field, value=str(place), wanted="a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError("cannot be written", field=field, value=str(place), wanted="a folder that can be written")


def require_file(file: Path, field: str) -> None:
    """Look whether a file can be written, or made with its folder. Raises InputError: it cannot, and why."""
    if file.is_dir():
        raise InputError("is a folder", field=field, value=str(file), wanted="a file")
    if file.exists() and not os.access(file, os.W_OK):
        raise InputError("cannot be written", field=field, value=str(file), wanted="a file that can be written")
    require_folder(file.parent, field)


@contextmanager
def made_folder(folder: Path, *, keep: bool = False) -> Iterator[None]:
    """Make a folder with those above it. What had to be made is removed again if it stays empty: after an error, or at the
    end unless `keep`."""
    refuse_address(folder)
    missing = list(itertools.takewhile(lambda place: not os.path.exists(place), (folder, *folder.parents)))
    kept = False
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) or error from None
        yield
        kept = keep
    finally:
        if not kept:
            for place in missing:
                with contextlib.suppress(OSError):  # somebody has put something there
                    place.rmdir()


@contextmanager
def whole_file(file: Path, *, durable: bool = False, size: int | None = None) -> Iterator[Path]:
    """Yield a path to write to; without an error it becomes `file`, and replaces what was there. Folders are made.

    Args:
        durable: wait until the content is on the disk, so that it survives a machine that stops.
        size: bytes it will take, if that is known: the error of a full disk says it.

    Raises:
        CannotWrite: not writable or disk full. What was there before is still there.
    """
    draft = _draft_of(file)
    with made_folder(file.parent, keep=True), _told(file, draft, size):
        remove_left(file)
        draft.touch()
        with _locked(draft):
            yield draft
            if durable:
                with draft.open("rb") as stream:
                    os.fsync(stream.fileno())
            draft.replace(file)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False, size: int | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; without an error it becomes `folder`, which must be absent or empty.

    Args:
        replace: put it in the place of a `folder` that holds something, which is removed.
        size: bytes it will take, if that is known: the error of a full disk says it.

    Raises:
        CannotWrite: not writable or disk full. Nothing is left behind.
        OSError: `folder` holds something.
    """
    draft, before = _draft_of(folder), _before(folder)
    with made_folder(folder.parent, keep=True), _told(folder, draft, size):
        remove_left(folder)
        draft.mkdir()
        with _locked(draft):
            yield draft
            try:
                if replace and folder.exists():
                    folder.replace(before)
                draft.replace(folder)
            finally:
                _put_back(folder)


def _before(folder: Path) -> Path:
    """Where a folder is while another takes its place."""
    return folder.with_name(f".{folder.name[:50]}.before")


def _put_back(folder: Path) -> None:
    """Remove what was set aside for a new folder, or put it back if the new one never came."""
    before = _before(folder)
    if before.exists() and not folder.exists():
        before.replace(folder)
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _told(place: Path, draft: Path, size: int | None) -> Iterator[None]:
    """After an error the draft is removed, and an error of writing gets words."""
    try:
        yield
    except BaseException as error:
        written = sum(path.lstat().st_size for path in [draft, *draft.rglob("*")] if path.is_file())
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        told = None
        if isinstance(error, Exception) and _is_about(error, draft):
            told = cannot_write(place, error, written=written, needed=size)
        if told is None:
            raise
        raise told from error


def _is_about(error: Exception, draft: Path) -> bool:
    """Whether an error may be of writing the draft: it names nothing, or something in its folder."""
    named = getattr(error, "filename", None)
    return not isinstance(named, str | bytes) or Path(os.fsdecode(named)).absolute().is_relative_to(
        draft.parent.absolute()
    )


def _draft_of(place: Path) -> Path:
    return place.with_name(f".{place.name[:50]}.{uuid4().hex}")  # a name has at most 255 bytes, a sign at most four


def draft_pattern(place: Path) -> str:
    """Matches the names of a file's or folder's drafts."""
    return rf"\.{re.escape(place.name[:50])}\.[0-9a-f]{{32}}"


@contextmanager
def _locked(draft: Path) -> Iterator[None]:
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks: then nobody removes it, either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_left(place: Path) -> None:
    """Remove what writers of `place` that were killed have left beside it; the log names it. `whole_file` and `whole_folder`
    do so first."""
    if not place.parent.is_dir():
        return
    _put_back(place)
    draft = re.compile(draft_pattern(place))
    with os.scandir(place.parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(".") and draft.fullmatch(entry.name)]
    for left in found:
        with contextlib.suppress(OSError):  # somebody else was quicker, or there are no locks
            if time.time() - left.stat().st_mtime < _SURELY_LOCKED_S:
                continue
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
                _log.warning("%s: what a command that was killed left half written is removed (%s)", place, left.name)
            finally:
                os.close(descriptor)


def write_atomically(file: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write `content` to `file`; see whole_file."""
    data = content.encode() if isinstance(content, str) else content
    with whole_file(file, durable=durable, size=len(data)) as draft:
        draft.write_bytes(data)


def read_json(file: Path) -> dict[str, Any]:
    """Raises InputError: missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file) from None
    except ValueError as error:
        raise InputError(f"is not JSON, or was cut off ({error})", file=file) from None
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", file=file, value=content, wanted="{…}")
    return content


def json_text(content: dict[str, Any]) -> str:
    """As all our JSON files are written."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder` but its files.json, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "files.json")
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def digest(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
