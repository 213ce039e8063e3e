"""What predictions let expect of the target's accuracy: values worked out by hand, and what must not change it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trainers.validators import ValidatorInputs
from trainers.validators.expected import (
    SIGNALS,
    ExpectedAccuracy,
    agreement,
    expected_accuracy,
    signals,
    temperature,
    tempered,
    thresholded_confidence,
)


def inputs(rows: int, right: float, sure: float, seed: int = 0) -> ValidatorInputs:
    """Sources and a target of the same distribution: three classes, `right` of the predictions are the true class. The
    picture head errs where the prediction is not sure, the text head never differs from the prediction.

    Args:
        sure: probability of the predicted class where it is right; wrong ones are half as sure.
    """
    draw = np.random.default_rng(seed)

    def predicted() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        labels = draw.integers(3, size=rows)
        correct = draw.random(rows) < right
        guess = np.where(correct, labels, (labels + 1) % 3)
        top = np.where(correct, sure, 0.5 * sure + 0.2) + draw.uniform(-0.02, 0.02, rows)
        probs = np.repeat((1 - top)[:, None] / 2, 3, 1)
        probs[np.arange(rows), guess] = top
        heads = np.stack([guess, np.where(correct, guess, (guess + 1) % 3)])
        return probs.astype(np.float32), labels, guess, heads

    source, true, _, of_source = predicted()
    target, _, label, of_target = predicted()
    none = np.zeros((rows, 2), np.float32)
    return ValidatorInputs(target, none, source, none, true, target, label, label, of_target, of_source)


def test_temperature_brings_confidence_to_accuracy() -> None:
    draw = np.random.default_rng(0)
    true = draw.dirichlet(np.ones(4), 4000)
    labels = (true.cumsum(1) > draw.random((4000, 1))).argmax(1)
    assert temperature(tempered(true, 1.0), labels) == pytest.approx(1.0, rel=0.1)
    assert temperature(tempered(true, 0.4), labels) == pytest.approx(2.5, rel=0.1)  # over-confident: T > 1
    np.testing.assert_allclose(tempered(tempered(true, 0.4), 2.5), true, atol=1e-6)


def test_thresholded_confidence_by_hand() -> None:
    confidence, right = np.array([0.9, 0.4, 0.7, 0.6, 0.5]), np.array([True, False, True, True, False])
    # Two of five are wrong: the threshold is the third smallest confidence, 0.6.
    assert thresholded_confidence(confidence, right, np.array([0.95, 0.6, 0.59, 0.1])) == 0.5
    assert thresholded_confidence(confidence, right, confidence) == pytest.approx(0.6)
    assert thresholded_confidence(confidence, np.zeros(5, bool), np.ones(3)) == 0.0
    assert thresholded_confidence(confidence, np.ones(5, bool), np.array([0.9, 0.3])) == 0.5


def test_agreement_by_hand() -> None:
    labels, fused = np.array([0, 1, 0, 1]), np.array([0, 1, 0, 0])
    heads = np.array([[1, 1, 1, 1], [0, 1, 1, 0]])  # half are right by both; the first of the better ones counts: text
    agree = np.array([[True, True, False, False], [True, True, True, True]])
    # The text head agrees with one of four source rows and with two of four target rows: 3/4 + 2/4 - 1/4.
    assert agreement(heads, fused, labels, agree) == pytest.approx(1.0)
    # Now the picture head is right everywhere: it agrees with three of four, and with all of the target.
    heads[1] = labels
    assert agreement(heads, fused, labels, agree[:, :2]) == pytest.approx(1.0)
    assert agreement(heads, fused, labels, ~agree) == pytest.approx(0.0)  # 3/4 + 0 - 3/4


def test_metrics_and_words() -> None:
    expected = ExpectedAccuracy(0.643, 0.551, 0.72)
    assert str(expected) == "about 64 % (55-72)"
    assert str(ExpectedAccuracy(0.5, 0.03, 0.96)) == "between 3 and 96 %"
    assert ExpectedAccuracy.from_metrics({"loss/total": 1.0, **expected.metrics()}) == expected
    assert ExpectedAccuracy.from_metrics({"loss/total": 1.0}) is None


def test_without_labelled_source_validation_rows_nothing_is_expected() -> None:
    seen = inputs(20, 0.8, 0.9)
    none = replace(
        seen,
        source_probs_MC=seen.source_probs_MC[:0],
        source_labels_M=seen.source_labels_M[:0],
        source_modalities_2M=seen.source_modalities_2M[:, :0],
    )
    assert expected_accuracy(none) is None


@pytest.mark.parametrize("right", [0.5, 0.75, 0.95])
def test_on_a_target_like_the_sources_their_accuracy_is_expected(right: float) -> None:
    expected = expected_accuracy(inputs(600, right, 0.9))
    assert expected is not None
    assert expected.low <= right <= expected.high
    assert 0 <= expected.low < expected.accuracy < expected.high <= 1


def test_less_sure_predictions_lower_it_and_heads_that_disagree_their_signal() -> None:
    seen = inputs(600, 0.8, 0.9)
    before = expected_accuracy(seen)
    unsure = expected_accuracy(replace(seen, target_probs_NC=0.5 * seen.target_probs_NC + np.float32(0.5 / 3)))
    assert before is not None and unsure is not None and unsure.accuracy < before.accuracy
    assert seen.target_modalities_2N is not None
    apart = replace(seen, target_modalities_2N=np.roll(seen.target_modalities_2N, 1, axis=1))
    assert signals(apart)["agreement"] < signals(seen)["agreement"]
    assert set(SIGNALS) == set(signals(seen))


def test_a_sure_target_is_not_expected_to_be_better_than_the_sources() -> None:
    seen = inputs(600, 0.6, 0.7)
    sure = np.full_like(seen.target_probs_NC, 0.0005)
    sure[:, 0] = 0.999
    expected = expected_accuracy(replace(seen, target_probs_NC=sure))
    assert expected is not None and expected.accuracy <= 0.6
    assert expected.high - expected.low > 0.5  # as unsure as predictions of which two of five are wrong


def test_the_interval_is_wider_for_few_records() -> None:
    few, many = (expected_accuracy(inputs(rows, 0.8, 0.9)) for rows in (20, 2000))
    assert few is not None and many is not None
    assert few.high - few.low > many.high - many.low


def test_evidence_of_older_checkpoints_has_an_estimate_too(tmp_path: Path) -> None:
    seen = inputs(200, 0.8, 0.9)
    older = {name: array for name, array in seen.arrays().items() if not name.endswith(("_2N", "_2M"))}
    assert len(older) == len(fields(seen)) - 2
    save_file(older, tmp_path / "evaluation.safetensors")
    found = ValidatorInputs.from_arrays(load_file(tmp_path / "evaluation.safetensors"))
    assert found.target_modalities_2N is None
    assert expected_accuracy(found) is not None
    whole = ValidatorInputs.from_arrays(seen.arrays())
    assert expected_accuracy(whole) == expected_accuracy(seen)
