"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from trainers.loop.evaluation import classification_metrics, confusion


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_metrics_equal_scikit_learn(num_classes: int) -> None:
    random = np.random.default_rng(num_classes)
    labels, predicted = random.integers(-1, num_classes, 60), random.integers(0, num_classes, 60)
    known = labels >= 0
    found = classification_metrics(labels, predicted)
    assert found["accuracy"] == pytest.approx((labels == predicted)[known].mean())
    assert found["macro_f1"] == pytest.approx(f1_score(labels[known], predicted[known], average="macro"))
    wanted = confusion_matrix(labels[known], predicted[known], labels=np.arange(num_classes))
    assert (confusion(labels, predicted, num_classes) == wanted).all()


def test_classes_that_do_not_occur_do_not_count() -> None:
    found = classification_metrics(np.array([0, 0, 3]), np.array([0, 3, 3]))
    assert found["macro_f1"] == pytest.approx(f1_score([0, 0, 3], [0, 3, 3], average="macro"))


def test_no_label_no_metrics() -> None:
    assert classification_metrics(np.array([-1, -1]), np.array([0, 1])) == {}
