"""The accuracy on held-out labels and its interval."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.validators.checked import CheckedAccuracy, checked_accuracy


def test_the_share_and_wilsons_interval() -> None:
    found = checked_accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    assert found is not None and (found.accuracy, found.records) == (0.75, 4)
    # By the formula with z = 1.645: centre (p + z²/2n)/(1 + z²/n), here 0.6491, and half a width of 0.2930.
    assert (found.low, found.high) == (pytest.approx(0.3561, abs=2e-4), pytest.approx(0.9421, abs=2e-4))
    assert str(found) == "75 % (36-94) on 4 labelled records held out"
    assert CheckedAccuracy.from_metrics(found.metrics()) == found


def test_nothing_held_out_says_nothing_and_one_record_little() -> None:
    assert checked_accuracy(np.empty(0, int), np.empty(0, int)) is None
    assert CheckedAccuracy.from_metrics({"target/val/accuracy": 0.5}) is None
    one = checked_accuracy(np.array([1]), np.array([1]))
    assert one is not None and one.high == 1 and one.low < 0.3 and str(one).endswith("on 1 labelled record held out")
