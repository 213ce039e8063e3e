"""Choosing without target labels, and metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainers.loop.evaluation import calibration_error, classification_metrics, confusion, reliability
from trainers.validators import choose_epoch
from trainers.validators.confidence import infomax


def test_infomax_is_highest_for_sure_and_balanced_predictions() -> None:
    assert infomax(np.eye(3)) == pytest.approx(math.log(3))
    assert infomax(np.eye(3)[[0, 0, 0]]) == pytest.approx(0.0)  # collapsed on one class
    assert infomax(np.full((3, 3), 1 / 3)) == pytest.approx(0.0)  # unsure everywhere


def test_the_gate_keeps_forgetful_epochs_out() -> None:
    assert choose_epoch([0.1, 0.5, 0.9], [0.90, 0.89, 0.70], gate=0.03) == 1
    assert choose_epoch([0.1, 0.5, 0.9], [0.90, 0.89, 0.70], gate=0.5) == 2


def test_ties_go_to_the_later_epoch_and_not_a_number_is_never_chosen() -> None:
    assert choose_epoch([0.5, 0.5], [0.9, 0.9], gate=0.0) == 1
    assert choose_epoch([0.5, float("nan")], [0.9, 0.9], gate=0.0) == 0
    assert choose_epoch([0.2, 0.7], [None, None], gate=0.0) == 1
    with pytest.raises(ValueError, match="no epoch"):
        choose_epoch([], [], 0.0)


def test_metrics_count_labelled_rows_only() -> None:
    labels, predicted = np.array([0, 0, 1, -1]), np.array([0, 1, 1, 0])
    metrics = classification_metrics(labels, predicted)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert confusion(labels, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert classification_metrics(np.array([-1]), np.array([0])) == {}


def test_calibration_error_of_known_confidences() -> None:
    labels = np.zeros(10, int)
    predicted = np.array([0] * 5 + [1] * 5)  # half of them right
    assert calibration_error(reliability(labels, predicted, np.full(10, 0.9))) == pytest.approx(0.4)
    assert calibration_error(reliability(labels, predicted, np.full(10, 0.5))) == pytest.approx(0.0)
