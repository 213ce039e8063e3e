"""Whether the training pictures' files exist, asked before a run starts.

On this machine each folder is listed once. In an object store every picture is a question over the network: of a domain with
more than MOST_ASKED pictures as many are drawn, and the first epoch finds what the others lack, as it does with pictures that
cannot be read.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.file_names import similar_file
from datasets_manifest.manifest.store_faults import with_store
from datasets_manifest.records import packed_pictures as packed
from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.records.sharded_table import ShardedTable, some_rows

MOST_ASKED = 10_000  # pictures of a domain in a store
ASKED_AGAIN = 100  # of those of a run that goes on
_AT_A_TIME = 64
_FEW = 16  # of a folder's files; more are looked up in its listing
_ROWS = 65_536  # of the table, that are Python's objects at a time


def require_pictures(corpus: Corpus, max_bad_fraction: float, *, again: bool = False) -> list[str]:
    """Check that the training pictures' files exist.

    Args:
        again: they were looked for when the run began: of those in a store, and of shards, ASKED_AGAIN a domain are asked for.

    Returns:
        a note for each domain that lacks some, or of which only some were looked at.

    Raises:
        InputError: more than `max_bad_fraction` of a domain's records lack a file, or the pictures' store does not answer.
    """
    notes = []
    for part in corpus.train:
        rows, asked = _rows_to_ask(corpus, part, ASKED_AGAIN if again else MOST_ASKED)
        number, first = _lacking(corpus.table, rows)
        if asked < len(part):
            kind = "in shards" if isinstance(corpus.table, ShardedTable) else "with pictures in a store"
            notes.append(
                f"{part.domain}, {part.split}: of {len(part):,} records {kind} {asked:,} were looked at; "
                "the first epoch finds what the others lack"
            )
        if first is None:
            continue
        row, path = first
        identity = corpus.table.select(["id"]).take([row])["id"][0].as_py()
        message = f"{number} of {asked} records lack a picture file, first record {identity}: {path}"
        if (similar := similar_file(path)) is not None:
            message += f" ({similar})"
        if number > _allowed(max_bad_fraction, asked, asked < len(part)):
            wanted = f"at most a fraction of {max_bad_fraction:g} (data.max_bad_fraction)"
            raise InputError(message, file=part.domain, field=f"splits.{part.split}", wanted=wanted)
        notes.append(f"{part.domain}, {part.split}: {message}")
    return notes


def _rows_to_ask(corpus: Corpus, part: Part, most: int) -> tuple[np.ndarray, int]:
    """Rows of the table, int64, in order, and their number: all of a part, or as many as have `most` pictures in a store, and
    of shards."""
    if isinstance(corpus.table, ShardedTable):
        drawn = part.start + some_rows(corpus.table.slice(part.start, len(part)), most)
        return drawn, len(drawn)
    images = corpus.table["images"].slice(part.start, len(part))
    flat = pa.chunked_array([chunk.flatten() for chunk in images.chunks], pa.string())
    if len(flat) <= most or not storage.is_uri(flat[0].as_py()):
        return part.rows, len(part)
    number = max(1, int(len(part) * most / len(flat)))
    drawn = np.random.default_rng(0).choice(part.rows, number, replace=False)
    return np.sort(drawn), number


def _allowed(fraction: float, asked: int, drawn: bool) -> float:
    """The most records without a file: by the fraction; of records that were drawn three deviations more."""
    return fraction * asked + (3 * math.sqrt(fraction * (1 - fraction) * asked) if drawn else 0.0)


def _lacking(table: pa.Table | ShardedTable, rows: np.ndarray) -> tuple[int, tuple[int, str] | None]:
    """How many of the rows lack a file, and the first with the first path that it lacks."""
    number, first = 0, None
    listed: dict[str, set[str]] = {}
    for start in range(0, len(rows), _ROWS):
        chosen = rows[start : start + _ROWS]
        images = table.select(["images"]).take(pa.array(chosen))["images"].to_pylist()
        gone = missing({packed.file_of(path) for paths in images for path in paths}, listed)
        for row, paths in zip(chosen, images, strict=True) if gone else ():
            lost = [path for path in paths if packed.file_of(path) in gone]
            number += bool(lost)
            if lost and first is None:
                first = int(row), lost[0]
    return number, first


def missing(files: Iterable[str], listed: dict[str, set[str]] | None = None) -> set[str]:
    """Those of the files that do not exist.

    Args:
        listed: folders → the names of their files, as far as they are known; is added to.

    Raises:
        InputError: the pictures' store does not answer.
    """
    known = {} if listed is None else listed
    folders: dict[str, list[str]] = defaultdict(list)
    single: list[str] = []
    for file in files:
        if storage.is_uri(file):
            single.append(file)
        else:
            folders[os.path.dirname(file)].append(file)
    gone: set[str] = set()
    for folder, within in folders.items():
        if folder not in known and len(within) <= _FEW:
            single += within
            continue
        if folder not in known:
            known[folder] = _names(folder)
        gone.update(file for file in within if os.path.basename(file) not in known[folder])
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        absent = pool.map(_absent, [single[start::_AT_A_TIME] for start in range(min(_AT_A_TIME, len(single)))])
        return gone.union(*absent)


def _names(folder: str) -> set[str]:
    """Of the files in a folder; a link counts as what it leads to."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _absent(files: Sequence[str]) -> list[str]:
    """Those of the files that do not exist."""
    gone = []
    for file in files:
        try:
            if not storage.is_file(file):
                gone.append(file)
        except OSError as error:
            problem = f"the pictures' store cannot be reached ({with_store(file, error)})"
            raise InputError(problem, value=file) from None
    return gone
