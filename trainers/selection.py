"""Choosing an epoch or a trial without target labels. Each validator says by its arguments which predictions it needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def infomax(mean_target_probs_C: np.ndarray, mean_target_entropy: float) -> float:
    """Information maximisation: H(mean p) − mean H(p), in nats; higher is better.

    High when single predictions are sure and together cover the classes.

    Source: Bridle et al., NeurIPS 1991; Shi and Sha, ICML 2012, arXiv:1206.6438.

    Args:
        mean_target_probs_C: mean of the target's predicted distributions.
        mean_target_entropy: mean of their entropies, nats.
    """
    return entropy(mean_target_probs_C) - mean_target_entropy


def entropy(probs_C: np.ndarray) -> float:
    """Entropy of one distribution, nats."""
    positive = probs_C[probs_C > 0]
    return float(-(positive * np.log(positive)).sum())


def choose_epoch(scores: Sequence[float], source_accuracies: Sequence[float | None], gate: float) -> int:
    """Position of the highest score among epochs whose source accuracy is within `gate` of the best epoch's.

    The gate keeps epochs out that are sure about the target because they have forgotten the task. Ties go to the later
    epoch. Without source accuracies every epoch is admitted.

    Args:
        scores: a validator's, one an epoch; not a number is never chosen while another is there.
        source_accuracies: mean validation accuracy over the sources, 0 to 1, or None.
        gate: 0 to 1.

    Raises:
        ValueError: no epochs.
    """
    if not len(scores):
        raise ValueError("there is no epoch to choose from")
    known = [accuracy for accuracy in source_accuracies if accuracy is not None]
    floor = max(known) - gate if known else 0.0
    admitted = [i for i, accuracy in enumerate(source_accuracies) if accuracy is None or accuracy >= floor]
    return max(admitted, key=lambda i: (scores[i] if np.isfinite(scores[i]) else -np.inf, i))
