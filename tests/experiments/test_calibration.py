from __future__ import annotations

import numpy as np
import pytest

from experiments.prior import find_temperature, sharpen


def drawn(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, and the same probabilities after they were made flatter or sharper."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 3))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random(20_000)[:, None] > true.cumsum(1)).sum(1)
    shown = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
    return shown, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_finds_what_the_labels_were_drawn_with(temperature: float) -> None:
    shown, labels = drawn(temperature)
    assert find_temperature(shown, labels) == pytest.approx(1 / temperature, rel=0.06)
    true, _ = drawn(1.0)
    assert sharpen(shown, 1 / temperature) == pytest.approx(true, abs=1e-4)


def test_without_labels_nothing_changes() -> None:
    shown, _ = drawn(1.0)
    assert find_temperature(shown[:0], np.empty(0, int)) == 1.0
    assert sharpen(np.array([[1.0, 0.0]]), 0.1).min() > 0
