"""MixVal: mixtures of target samples as probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHARE = 0.55  # of the dominant sample


def interpolation_consistency(mixed_probs_RC: np.ndarray, dominant_R: np.ndarray, other_R: np.ndarray) -> np.ndarray:
    """Share of mixtures that get the dominant sample's predicted class: [within one class, between two]; NaN: no pair.

    Within one class it probes the density of the clusters, between two it probes where the boundary lies.

    Source: Hu et al., "Mixed Samples as Probes for Unsupervised Model Selection in Domain Adaptation", NeurIPS 2023.

    Args:
        mixed_probs_RC: predictions for λ·a + (1 − λ)·b, λ = SHARE.
        dominant_R, other_R: the classes predicted for a and for b.
    """
    kept_R = mixed_probs_RC.argmax(1) == dominant_R
    same_R = dominant_R == other_R
    return np.array([kept_R[which].mean() if which.any() else np.nan for which in (same_R, ~same_R)])


def mixval(consistency_E2: Sequence[np.ndarray]) -> list[float]:
    """Mean of the candidates' ranks by both kinds of consistency, 1 to E, the highest for the best.

    Source: Hu et al., NeurIPS 2023.
    """
    import pandas as pd  # type: ignore[import-untyped]  # slow to import, and every worker imports this file

    known_E2 = np.nan_to_num(np.asarray(consistency_E2, float), nan=-np.inf)  # no pair between classes: a collapse
    return [float(mean) for mean in pd.DataFrame(known_E2).rank().to_numpy().mean(1)]
