"""The journal of a run: one small file an epoch, beside the run's checkpoints.

The controller of Ray Train writes it, the sender of `trainers/tracking/sender.py` reads it. It is what survives when MLflow is
away, when the driver dies, and when a report arrives twice: an epoch's file is written whole or not at all, and the
same epoch written again replaces it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from pyarrow import fs
from ray.train import UserCallback

_log = logging.getLogger(__name__)
_FILE = re.compile(r"epoch-(\d{5,})\.json")


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch reported.

    Args:
        epoch: number of the epoch, from 1.
        step: optimisation steps done since the run began, over all epochs.
        time: when the epoch ended, in seconds since 1970 (UTC).
        metrics: name → finite value. Values that are not finite are moved to `dropped`.
        dropped: names of the metrics that were not finite.
    """

    epoch: int
    step: int
    time: float
    metrics: dict[str, float]
    dropped: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        lost = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        object.__setattr__(self, "metrics", {k: float(v) for k, v in self.metrics.items() if k not in lost})
        object.__setattr__(self, "dropped", tuple(sorted({*self.dropped, *lost})))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> EpochRecord:
        """Raises ValueError, KeyError or TypeError if `text` is not a record."""
        tree = json.loads(text)
        metrics = {str(name): float(value) for name, value in tree["metrics"].items()}
        return cls(int(tree["epoch"]), int(tree["step"]), float(tree["time"]), metrics, tuple(tree["dropped"]))


class Journal:
    """Epoch records in a folder.

    Args:
        folder: `<run folder>/journal`: a local path or any address that `pyarrow.fs.FileSystem.from_uri` knows. It is
            made by the first `append`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def append(self, record: EpochRecord) -> None:
        """Write the epoch's file; an earlier one of the same epoch is replaced.

        Raises:
            OSError: the file could not be written. What was there before is still there.
        """
        files, root = self._open()
        files.create_dir(root, recursive=True)
        place = f"{root}/epoch-{record.epoch:05d}.json"
        content = record.to_json().encode()
        if isinstance(files, fs.LocalFileSystem):
            _write_local(place, content)
        else:
            # Object stores show a file only when it is closed; a rename there would be a copy.
            with files.open_output_stream(place) as stream:
                stream.write(content)

    def read(self, known: Collection[int] = ()) -> list[EpochRecord]:
        """All records, by epoch. A file that is not a record is named in the log and left out: it must not end a run.

        Args:
            known: epochs whose files need not be opened; they are left out.

        Raises:
            OSError: the folder is there but cannot be read.
        """
        files, root = self._open()
        places = {}
        for info in files.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            name = _FILE.fullmatch(info.base_name)
            if name and int(name[1]) not in known:
                places[int(name[1])] = info.path
        records = [_read(files, place) for place in places.values()]
        return sorted((record for record in records if record is not None), key=lambda record: record.epoch)

    def _open(self) -> tuple[fs.FileSystem, str]:
        """The file system is opened anew for each use: a journal travels to the controller as its address only."""
        if "://" in self.folder:
            files, root = fs.FileSystem.from_uri(self.folder)
            return files, root.rstrip("/")
        return fs.LocalFileSystem(), os.path.abspath(self.folder)


class JournalCallback(UserCallback):
    """Appends what rank 0 reports to the journal; runs in the Train controller.

    Training goes on when the journal cannot be written: after a second attempt the loss is logged. A report from the
    middle of an epoch (`partial`) is no epoch's record. One without `epoch` or `step` is a fault of the program and
    raises KeyError.
    """

    def __init__(self, folder: str) -> None:
        self._journal = Journal(folder)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if metrics[0].get("partial"):
            return None
        record = record_of(metrics[0])
        for last in (False, True):
            try:
                return self._journal.append(record)
            except OSError as error:
                if last:
                    _log.error("epoch %d is not in the journal %s: %s", record.epoch, self._journal.folder, error)
        return None


def record_of(report: Mapping[str, Any]) -> EpochRecord:
    """A worker's report as a record: `epoch`, `step`, and every other value that is a number."""
    metrics = {name: float(value) for name, value in report.items() if _is_number(value)}
    epoch, step = metrics.pop("epoch"), metrics.pop("step")
    return EpochRecord(int(epoch), int(step), time.time(), metrics)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _write_local(place: str, content: bytes) -> None:
    # The name is our own: two writers of one epoch (an old controller and its successor) do not meet in one file.
    draft = f"{place}.{uuid.uuid4().hex}.tmp"
    try:
        with open(draft, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, place)
    except OSError:
        if os.path.exists(draft):
            os.unlink(draft)
        raise


def _read(files: fs.FileSystem, place: str) -> EpochRecord | None:
    try:
        with files.open_input_stream(place) as stream:
            return EpochRecord.from_json(stream.read())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s is not an epoch's record and is left out: %r", place, error)
        return None
