"""MLflow's SQLite store is made aside and takes its place when it is whole.

A command that is killed while MLflow makes its tables would leave a store that never opens again.
"""

from __future__ import annotations

import fcntl
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets_manifest.files import draft_pattern, whole_file
from trainers.tracking.address import sqlite_uri
from trainers.tracking.mlflow_check import is_whole
from trainers.tracking.mlflow_compat import make_sqlite_store

_log = logging.getLogger(__name__)


def ensure_store(file: Path) -> None:
    """Make the store, unless it is there. One that was only half made is moved away, and the log says where to.

    Raises:
        InputError: the file is no database.
        OSError: the folder cannot be written, or the disk is full.
    """
    if is_whole(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(file):
        if is_whole(file):
            return
        _remove_drafts(file)
        _move_away(file)
        with whole_file(file, durable=True) as draft:
            make_sqlite_store(sqlite_uri(draft), (file.parent / "mlartifacts").absolute().as_uri())


def _move_away(file: Path) -> None:
    parts = [part for ending in ("", "-journal", "-wal", "-shm") if (part := Path(f"{file}{ending}")).exists()]
    aside = f"half-made-{time.strftime('%Y%m%d-%H%M%S')}"
    for part in parts:
        part.replace(part.with_name(f"{part.name}.{aside}"))
    if parts:
        _log.warning("%s was left half made by a command that was killed; it is now %s.%s", file, file.name, aside)


def _remove_drafts(file: Path) -> None:
    """Of commands that were killed: whoever holds the lock is the only one that makes this store."""
    draft = re.compile(draft_pattern(file) + "(-journal|-wal|-shm)?")
    for found in file.parent.iterdir():
        if draft.fullmatch(found.name):
            found.unlink(missing_ok=True)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
