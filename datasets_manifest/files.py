"""Files and folders that appear whole or not at all: written under a name of their own, renamed when complete. JSON files,
and the checksums of a folder.

A draft's name starts with a dot and has a random part, so two writers of one file never meet in a draft.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets_manifest.errors import InputError


@contextmanager
def whole_file(file: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to; without an error it becomes `file`, and replaces what was there. Folders are made.

    Args:
        durable: wait until the content is on the disk, so that it survives a machine that stops.

    Raises:
        OSError: not writable or disk full. What was there before is still there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        yield draft
        if durable:
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; without an error it becomes `folder`, which must be absent or empty.

    Args:
        replace: put it in the place of a `folder` that holds something, which is removed.

    Raises:
        OSError: not writable, disk full, or `folder` holds something. Nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft, before = (folder.with_name(f".{folder.name}.{uuid4().hex}") for _ in range(2))
    draft.mkdir()
    try:
        yield draft
        if replace and folder.exists():
            folder.replace(before)
        draft.replace(folder)
    finally:
        for leftover in (draft, before):
            shutil.rmtree(leftover, ignore_errors=True)


def write_atomically(file: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write `content` to `file`; see whole_file."""
    with whole_file(file, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(file: Path) -> dict[str, Any]:
    """Raises InputError: missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    if not isinstance(content, dict):
        raise InputError("does not hold an object", file=file)
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
