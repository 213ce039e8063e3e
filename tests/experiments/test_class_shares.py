"""Class shares by calibration, expectation-maximisation and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.class_shares import bias_corrected_temperature, calibrated, estimates


def bells(share: float, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two overlapping bells by a classifier that is twice too sure and prefers the second; labels."""
    draw = np.random.default_rng(seed)
    labels = (draw.random(number) < share).astype(int)
    logit = 2 * draw.normal(np.where(labels, 1.0, -1.0), 1.0)
    positive = 1 / (1 + np.exp(-2 * logit - 0.7))
    return np.stack([1 - positive, positive], 1), labels


def test_the_calibration_undoes_a_scale_and_a_bias() -> None:
    probs, labels = bells(0.5, 6000, 0)
    found = calibrated(np.log(probs), bias_corrected_temperature(np.log(probs), labels))
    sure = found[:, 1] > 0.9
    assert found[sure, 1].mean() == pytest.approx(labels[sure].mean(), abs=0.02) and probs[sure, 1].mean() > 0.96


def test_shares_that_differ_are_found_and_equal_ones_stay() -> None:
    probs, labels = bells(0.5, 1500, 1)
    for share, error in ((0.2, 0.1), (0.5, 0.06)):
        target, _ = bells(share, 1500, 2)
        found = estimates(probs, labels, target)
        wanted = np.array([1 - share, share])
        assert np.abs(found["EM, shrunk by bootstrap"] - wanted).sum() < error
        assert all(shares.sum() == pytest.approx(1) for shares in found.values())
        assert (
            np.abs(found["EM, shrunk by bootstrap and confusion"] - 0.5).sum() <= np.abs(found["EM"] - 0.5).sum() + 1e-9
        )
