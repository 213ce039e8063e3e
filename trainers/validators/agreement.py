"""EnsV: agreement with the ensemble of all candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ensv(target_probs_ENC: Sequence[np.ndarray]) -> list[float]:
    """Each candidate's accuracy against the classes of the candidates' mean probabilities, 0 to 1.

    The ensemble is in expectation at least as good as its members' average, so no bad candidate agrees with it most.

    Source: Hu et al., "Towards Reliable Model Selection for Unsupervised Domain Adaptation: An Empirical Study and A
    Certified Baseline", NeurIPS 2024.

    Args:
        target_probs_ENC: of every candidate on the same rows.
    """
    ensemble_N = np.mean(np.stack(list(target_probs_ENC)), axis=0).argmax(1)
    return [float((probs_NC.argmax(1) == ensemble_N).mean()) for probs_NC in target_probs_ENC]
