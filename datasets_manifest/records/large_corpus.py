"""Whether a corpus is too large for a table on each node, and the folder in which its rows lie as shards."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.files import whole_folder
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.record_files import format_of
from datasets_manifest.records.sharded_table import ShardedTable, ShardWriter, open_output

# A table of 300 bytes a row takes 5 GB then, and the driver and each node hold one. Ray's object store has 30 % of a node's
# memory: a node of 16 GB has no room for more.
MOST_ROWS, MOST_BYTES = 2**24, 2**32
FOLDER = ".rows"  # in the folder of runs
_ABOUT = "corpus.json"
_LAYOUT = 1  # of the shards; another one is another folder

Split = tuple[LoadedManifest, str]


def is_large(splits: Sequence[Split]) -> bool:
    """Whether the records files have more than MOST_ROWS rows, as far as they say so, or MOST_BYTES.

    Folders of classes, and data sets of which the manifest divides a split, which takes all rows at once, do not count.
    """
    if any(manifest.manifest.split is not None for manifest, _ in splits):
        return False
    rows = size = 0
    for manifest, split in splits:
        settings = manifest.split(split)
        if settings.format == "folders":
            continue
        for file in manifest.record_paths(split):
            try:
                if (format_of(file) if settings.format == "auto" else settings.format) == "parquet":
                    with storage.open_input(file) as stream:
                        metadata = pq.read_metadata(stream)
                    rows += metadata.num_rows
                    size += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
                else:
                    size += storage.size(file)
            except (pa.ArrowException, OSError, InputError):
                return False  # reading it says what is wrong
    return rows > MOST_ROWS or size > MOST_BYTES


def shards_of(splits: Sequence[Split], runs: Location) -> Location:
    """The folder of the rows of these splits in the folder of runs: another one where a manifest or a file is another."""
    named: list[Any] = [_LAYOUT]
    for manifest, split in splits:
        files = [(str(file), *_version(file)) for file in manifest.record_paths(split)]
        named.append([str(manifest.path), manifest.manifest.model_dump(mode="json"), split, files])
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    return storage.locate(runs, f"{FOLDER}/{key}")


def read_shards(folder: Location) -> tuple[ShardedTable, dict[str, Any]] | None:
    """The rows that lie in a folder and what was written with them; None: none, or not all."""
    try:
        return ShardedTable.open(folder), json.loads(storage.read_bytes(storage.locate(folder, _ABOUT)))
    except OSError:  # where they cannot be read, they cannot be written either: that is told
        return None


class Shards:
    """Rows that are written; see `written`."""

    def __init__(self, folder: Location) -> None:
        self.writer = ShardWriter(folder)

    def finish(self, about: dict[str, Any]) -> None:
        """All rows are there. about: what is told about them."""
        with open_output(storage.locate(self.writer.folder, _ABOUT)) as file:
            file.write(json.dumps(about).encode())
        self.writer.finish()


@contextlib.contextmanager
def written(folder: Location) -> Iterator[Shards]:
    """Write rows into a folder that is there, whole, afterwards, or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        if isinstance(folder, str):
            # An object is there when it is whole, and the index is the last one.
            yield Shards(folder)
            return
        try:
            with whole_folder(folder) as draft:
                yield Shards(draft)
        except OSError:
            if not folder.is_dir():  # another command was not sooner, either
                raise
    except OSError as error:
        problem = f"the rows of the data cannot be written ({first_line(error)})"
        raise InputError(problem, field="run.storage", value=str(folder)) from None
    except BaseException:
        if isinstance(folder, str):
            with contextlib.suppress(OSError):
                filesystem, path = storage.open_filesystem(folder)
                filesystem.delete_dir(path)
        raise


def _version(file: Location) -> tuple[int, int]:
    """Size and time of the last change; of what is no file, the folder's."""
    if isinstance(file, Path):
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    filesystem, path = storage.open_filesystem(file)
    info: fs.FileInfo = filesystem.get_file_info(path)
    return info.size or 0, info.mtime_ns or 0
