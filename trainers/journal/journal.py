"""The journal of a run: one small file an epoch, in the run's folder.

Ray Train's controller writes it (cluster/journal_callback.py), the sender (tracking/sender.py) reads it. It survives an
unreachable MLflow, the driver's death, and a report that arrives twice: the same epoch written again replaces its file.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets_manifest.files import write_atomically

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
    """Epoch records in a folder, which the first `append` makes: `<run folder>/journal`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def append(self, record: EpochRecord) -> Path:
        """Write the epoch's file, and return it; an earlier one of the same epoch is replaced.

        Raises:
            OSError: the file could not be written. What was there before is still there.
        """
        file = self.folder / f"epoch-{record.epoch:05d}.json"
        write_atomically(file, record.to_json(), durable=True)
        return file

    def read(self, known: Collection[int] = ()) -> list[EpochRecord]:
        """All records, by epoch. A file that is not a record is named in the log and left out: it must not end a run.

        Args:
            known: epochs whose files need not be opened; they are left out.

        Raises:
            OSError: the folder is there but cannot be read.
        """
        try:
            files = list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        found = [(int(name[1]), file) for file in files if (name := _FILE.fullmatch(file.name))]
        records = [_read(file) for epoch, file in sorted(found) if epoch not in known]
        return [record for record in records if record is not None]


def _read(file: Path) -> EpochRecord | None:
    try:
        return EpochRecord.from_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s is not an epoch's record and is left out: %r", file, error)
        return None
