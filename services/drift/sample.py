"""A bounded sample of what models saw and predicted, as a Parquet file: features, facts and predictions, no record's content."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.files import require_file, whole_file
from trainers.model.predictor import Predictions
from trainers.model.reference import FACTS, Seen

SIZE = 1000  # records of a model
WRITTEN_EVERY_S = 60.0
_MOST_MODELS = 3  # versions of which a sample is kept, the latest used ones
_KEY = b"m2can.sample"  # of the file's metadata
_WANTED = "a file that `m2can serve --sample` or `m2can predict --sample` wrote"
_log = logging.getLogger(__name__)

_Row = tuple[datetime, np.ndarray, np.ndarray, np.ndarray]  # when; probabilities, features, facts


@dataclass
class _Reservoir:
    """Of one model: rows drawn evenly from all that were predicted."""

    model: str
    classes: list[str]
    rows: list[_Row] = field(default_factory=list)
    predicted: int = 0


def require_sample(file: Path) -> None:
    """Raises InputError: a sample cannot be written there."""
    if file.suffix != ".parquet":
        raise InputError("is not the name of a sample", field="--sample", value=str(file), wanted="FILE.parquet")
    require_file(file, "--sample")


class Sampler:
    """Keeps at most `size` records of each model, each of all that were predicted with the same chance, and writes them to
    `file`: a minute after a change at the latest, and when it is closed. May be called from several threads.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, file: Path, size: int = SIZE, every_s: float = WRITTEN_EVERY_S) -> None:
        require_sample(file)
        self._file, self._size, self._every_s = file, size, every_s
        self._of: OrderedDict[str, _Reservoir] = OrderedDict()
        self._random = np.random.default_rng()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, model: str, fingerprint: str, predictions: Predictions) -> None:
        """Take what a model predicted; see trainers.model.reference.fingerprint."""
        seen, now = predictions.seen, datetime.now(UTC)
        with self._lock:
            kept = self._of.setdefault(fingerprint, _Reservoir(model, list(predictions.classes)))
            self._of.move_to_end(fingerprint)
            while len(self._of) > _MOST_MODELS:
                self._of.popitem(last=False)
            for probs, features, facts in zip(seen.probs_NC, seen.features_NK, seen.facts_NF, strict=True):
                self._keep(kept, (now, probs, features, facts))
            if self._timer is None and len(seen):
                self._timer = threading.Timer(self._every_s, self._write_and_go_on)
                self._timer.daemon = True
                self._timer.start()

    def _keep(self, kept: _Reservoir, row: _Row) -> None:
        """Algorithm R: Vitter, "Random Sampling with a Reservoir", ACM TOMS 1985."""
        kept.predicted += 1
        if len(kept.rows) < self._size:
            kept.rows.append(row)
        elif (place := int(self._random.integers(kept.predicted))) < self._size:
            kept.rows[place] = row

    def write(self) -> None:
        """Replace the file, whole or not at all.

        Raises:
            CannotWrite: the disk is full, or the file must not be written.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            table = _table(self._of)
        with whole_file(self._file) as draft:
            pq.write_table(table, draft)

    def close(self) -> None:
        """Write what was not written yet."""
        if self._timer is not None:
            self._write_and_go_on()

    def _write_and_go_on(self) -> None:
        """A service goes on where its sample cannot be written."""
        try:
            self.write()
        except OSError as error:
            _log.warning("the sample is not written: %s", first_line(error))


def _table(of: OrderedDict[str, _Reservoir]) -> pa.Table:
    rows = [(name, kept, row) for name, kept in of.items() for row in kept.rows]
    numbers = pa.list_(pa.float32())
    columns: dict[str, Any] = {
        "time": pa.array([row[0] for _, _, row in rows], pa.timestamp("ms", "UTC")),
        "model": pa.array([kept.model for _, kept, _ in rows], pa.string()),
        "fingerprint": pa.array([name for name, _, _ in rows], pa.string()),
        "label": pa.array([kept.classes[int(row[1].argmax())] for _, kept, row in rows], pa.string()),
        "confidence": pa.array([float(row[1].max()) for _, _, row in rows], pa.float32()),
        "probs": pa.array([row[1].tolist() for _, _, row in rows], numbers),
        "features": pa.array([row[2].tolist() for _, _, row in rows], numbers),
    }
    for number, fact in enumerate(FACTS):
        columns[fact] = pa.array([float(row[3][number]) for _, _, row in rows], pa.float32())
    about = {
        name: {"model": kept.model, "classes": kept.classes, "predicted": kept.predicted} for name, kept in of.items()
    }
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})


@dataclass(frozen=True)
class Sample:
    """What a file holds of one model. predicted: records of which it was drawn. first, last: when they were predicted."""

    seen: Seen
    predicted: int
    first: datetime
    last: datetime


def read_sample(file: Path, fingerprint: str) -> Sample:
    """The records of one model.

    Raises:
        InputError: not a sample, or it has no record of this model.
    """
    try:
        table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[_KEY])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read ({first_line(error)})", file=file, wanted=_WANTED) from None
    except KeyError:
        raise InputError("is not a sample of predictions", file=file, wanted=_WANTED) from None
    rows = table.filter(pa.compute.equal(table["fingerprint"], fingerprint))
    if not rows.num_rows:
        there = ", ".join(sorted(entry["model"] for entry in about.values())) or "none"
        problem = "has no record that this model predicted; features of two models cannot be compared"
        raise InputError(problem, file=file, field="--on", value=there, wanted="a sample of this version's predictions")
    probs, features = (np.array(rows[name].to_pylist(), np.float32) for name in ("probs", "features"))
    facts = np.column_stack([rows[fact].to_numpy() for fact in FACTS])
    times = rows["time"].to_pylist()
    return Sample(Seen(probs, features, facts), about[fingerprint]["predicted"], min(times), max(times))
