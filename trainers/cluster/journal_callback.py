"""Ray Train's controller writes the run's journal through this callback."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from trainers.journal.journal import EpochRecord, Journal
from trainers.store.run_store import RunStore

_log = logging.getLogger(__name__)


class JournalCallback(UserCallback):
    """Appends what rank 0 reports to the journal in `folder`, and to that of the run in a store.

    Training goes on when the journal cannot be written: after a second attempt the loss of the record is logged. A report
    from the middle of an epoch (`partial`) is not recorded. One without `epoch` or `step` is a fault of the program and
    raises KeyError.
    """

    def __init__(self, folder: str | Path, store: RunStore | None = None) -> None:
        self._journal, self._store = Journal(folder), store

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if metrics[0].get("partial"):
            return
        record = record_of(metrics[0])
        for last in (False, True):
            try:
                file = self._journal.append(record)
                if self._store is not None:
                    self._store.put(file, f"{file.parent.name}/{file.name}")
                return
            except OSError as error:
                if last:
                    _log.error("epoch %d is not in the journal %s: %s", record.epoch, self._journal.folder, error)


def record_of(report: Mapping[str, Any]) -> EpochRecord:
    """A worker's report as a record: `epoch`, `step`, and every other value that is a number."""
    metrics = {
        name: float(value) for name, value in report.items() if isinstance(value, Real) and not isinstance(value, bool)
    }
    epoch, step = metrics.pop("epoch"), metrics.pop("step")
    return EpochRecord(int(epoch), int(step), time.time(), metrics)
