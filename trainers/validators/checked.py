"""The target's accuracy on labelled records that were held out, where labels of the target were given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainers.validators.expected import NORMAL

CHECKED = "target/checked_accuracy"
_LOW, _HIGH, _RECORDS = f"{CHECKED}_low", f"{CHECKED}_high", "target/checked_records"


@dataclass(frozen=True)
class CheckedAccuracy:
    """accuracy: 0 to 1. low, high: an interval that holds the true one in nine of ten draws of so many records."""

    accuracy: float
    low: float
    high: float
    records: int

    def metrics(self) -> dict[str, float]:
        """As an epoch's metrics."""
        return {CHECKED: self.accuracy, _LOW: self.low, _HIGH: self.high, _RECORDS: float(self.records)}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> CheckedAccuracy | None:
        """None for an epoch of a run without held-out labels."""
        if CHECKED not in metrics:
            return None
        return cls(metrics[CHECKED], metrics[_LOW], metrics[_HIGH], round(metrics[_RECORDS]))

    def __str__(self) -> str:
        noun = "record" if self.records == 1 else "records"
        return (
            f"{100 * self.accuracy:.0f} % ({100 * self.low:.0f}-{100 * self.high:.0f}) on {self.records:,} "
            f"labelled {noun} held out"
        )


def checked_accuracy(predicted_M: np.ndarray, labels_M: np.ndarray) -> CheckedAccuracy | None:
    """Of M held-out records, with Wilson's interval; None without any.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    number = len(labels_M)
    if not number:
        return None
    share = float((predicted_M == labels_M).mean())
    weight = NORMAL**2 / number
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    return CheckedAccuracy(share, max(middle - half, 0.0), min(middle + half, 1.0), number)


def checked_metrics(predicted_M: np.ndarray, labels_M: np.ndarray) -> dict[str, float]:
    """The same as an epoch's metrics; empty without held-out records."""
    found = checked_accuracy(predicted_M, labels_M)
    return found.metrics() if found else {}
