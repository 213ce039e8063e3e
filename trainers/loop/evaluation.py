"""Metrics of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15  # of confidence


def classification_metrics(labels_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 over the rows that have a label, 0 to 1; nothing where no row has one.

    Classes that are neither among the labels nor predicted do not count in macro-F1.
    """
    known = labels_N >= 0
    if not known.any():
        return {}
    labels, predicted = labels_N[known], predicted_N[known]
    counts_CC = confusion(labels, predicted, int(max(labels.max(), predicted.max())) + 1)
    either_C = counts_CC.sum(0) + counts_CC.sum(1)
    f1_C = 2 * counts_CC.diagonal()[either_C > 0] / either_C[either_C > 0]
    return {"accuracy": float((labels == predicted).mean()), "macro_f1": float(f1_C.mean())}


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [true class, predicted class] over the rows that have a label."""
    known = labels_N >= 0
    cells = labels_N[known] * num_classes + predicted_N[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ReliabilityBin:
    """Of the rows whose confidence lies from `low` to `high`: their number, mean accuracy and mean confidence."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


def reliability(labels_N: np.ndarray, predicted_N: np.ndarray, confidence_N: np.ndarray) -> list[ReliabilityBin]:
    """The bins of equal width in confidence, BINS in all, that have rows; rows without a label do not count."""
    known = labels_N >= 0
    correct, confidence = (labels_N == predicted_N)[known], confidence_N[known].astype(float)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            b / BINS, (b + 1) / BINS, int(inside.sum()), *(float(x[inside].mean()) for x in (correct, confidence))
        )
        for b in range(BINS)
        if (inside := place == b).any()
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error, 0 to 1; not a number without bins.

    Source: Guo et al., ICML 2017, arXiv:1706.04599.
    """
    rows = sum(part.count for part in bins)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / rows if rows else float("nan")
