"""Metrics of predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


def calibration_error(labels_N: np.ndarray, predicted_N: np.ndarray, confidence_N: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of confidence, 0 to 1; rows without a label do not count.

    Source: Guo et al., ICML 2017, arXiv:1706.04599.
    """
    found = reliability(labels_N, predicted_N, confidence_N, bins)
    rows = sum(part.count for part in found)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in found) / rows if rows else float("nan")


@dataclass(frozen=True)
class ReliabilityBin:
    """Of the rows whose confidence lies from `low` to `high`: their number, mean accuracy and mean confidence."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


def reliability(
    labels_N: np.ndarray, predicted_N: np.ndarray, confidence_N: np.ndarray, bins: int = 15
) -> list[ReliabilityBin]:
    """Equal-width bins of confidence that have rows; rows without a label do not count."""
    known = labels_N >= 0
    correct, confidence = (labels_N == predicted_N)[known], confidence_N[known].astype(float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(
            b / bins, (b + 1) / bins, int(inside.sum()), *(float(x[inside].mean()) for x in (correct, confidence))
        )
        for b in range(bins)
        if (inside := place == b).any()
    ]
