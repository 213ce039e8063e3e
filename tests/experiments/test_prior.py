"""The estimated prior."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.prior import estimate_prior


def test_estimated_prior_recovers_the_shift() -> None:
    """A calibrated classifier of two overlapping bells, trained on half and half, seen on 15 % and 85 %."""
    rng = np.random.default_rng(0)
    true = np.array([0.15, 0.85])
    y = rng.random(40_000) < true[1]
    x = rng.normal(np.where(y, 1.0, -1.0), 1.0)
    positive = 1 / (1 + np.exp(-2 * x))
    found = estimate_prior(np.stack([1 - positive, positive], 1), np.array([0.5, 0.5]))
    assert found == pytest.approx(true, abs=0.01)
    assert np.mean(positive > 0.5) < 0.82  # counting predictions would miss it


def test_estimated_prior_without_a_shift_stays() -> None:
    probs = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert estimate_prior(probs, np.array([0.5, 0.5])) == pytest.approx([0.5, 0.5])
