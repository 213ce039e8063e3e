"""From the target's scores to the pseudo labels of the next epoch: class shares and what is reported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers.m2can.pseudo_labels import uniform_prior
from trainers.recipe.method_sections import Uacr


def class_prior(uacr: Uacr, num_classes: int) -> np.ndarray:
    """The class shares that quotas follow, [C]."""
    return np.array(uacr.prior) / sum(uacr.prior) if isinstance(uacr.prior, list) else uniform_prior(num_classes)


def selection_metrics(
    label_N: np.ndarray, selected: np.ndarray, true_N: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """How many were selected, their classes and, for reports only, how many are right where the target has labels.

    Args:
        label_N: predicted class of each training row of the target.
        selected: positions of the rows that get a pseudo label.
        true_N: labels, -1 where there is none.
    """
    metrics = {"uacr/kept": float(len(selected)), "uacr/kept_share": len(selected) / len(true_N)}
    counts = np.bincount(label_N[selected], minlength=len(classes))
    if len(selected):
        shares = counts / len(selected)
        metrics |= {f"uacr/class_share/{name}": float(s) for name, s in zip(classes, shares, strict=True)}
    known_N = true_N >= 0
    right_N = label_N == true_N
    if known_N.any():
        metrics["uacr/accuracy"] = float(right_N[known_N].mean())
        if known_N[selected].any():
            metrics["uacr/precision"] = float(right_N[selected][known_N[selected]].mean())
    return metrics
