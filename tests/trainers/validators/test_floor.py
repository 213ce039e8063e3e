"""The floor against the chosen epoch: by what predictions say, not by how sure a probe happens to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainers.validators import ValidatorInputs, compare_with_floor
from trainers.validators.floor import as_sure_as

ROWS, CLASSES = 300, 3


def candidate(right: float, sure: float, *, target_sure: float | None = None, seed: int = 0) -> ValidatorInputs:
    """Predictions of a share `right` of right classes with the probability `sure`, on the target with `target_sure`."""
    draw = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES

    def probs(sure: float) -> np.ndarray:
        said = np.where(draw.random(ROWS) < right, labels, (labels + 1) % CLASSES)
        found = np.full((ROWS, CLASSES), (1 - sure) / (CLASSES - 1))
        found[np.arange(ROWS), said] = sure
        return found

    target = probs(target_sure or sure)
    features = draw.normal(size=(ROWS, 4))
    label = target.argmax(1)
    return ValidatorInputs(target, features, probs(sure), features, labels, target, label, np.roll(label, 1))


def test_a_flat_floor_wins_where_the_epoch_is_unsure_of_the_target() -> None:
    floor, epoch = candidate(0.8, 0.36), candidate(0.8, 0.95, target_sure=0.6)
    found = compare_with_floor("infomax", floor, epoch, gate=0.1)
    assert found.prefers_floor
    scaled = as_sure_as(floor, epoch)
    assert scaled.source_probs_MC.max(1) == pytest.approx(epoch.source_probs_MC.max(1), abs=1e-6)
    assert np.array_equal(scaled.target_probs_NC.argmax(1), floor.target_probs_NC.argmax(1))


def test_an_epoch_that_is_as_sure_of_the_target_stays() -> None:
    assert not compare_with_floor(
        "infomax", candidate(0.8, 0.36, target_sure=0.35), candidate(0.8, 0.95), 0.1
    ).prefers_floor


@pytest.mark.parametrize(("floor", "epoch", "chosen"), [(0.5, 0.9, False), (0.9, 0.5, True)])
def test_the_gate_is_both_sides(floor: float, epoch: float, chosen: bool) -> None:
    """Whichever has the sources much less right is out."""
    found = compare_with_floor("infomax", candidate(floor, 0.5), candidate(epoch, 0.5), gate=0.03)
    assert found.prefers_floor == chosen


def test_a_floor_that_predicts_other_class_shares_is_no_choice() -> None:
    """It wins by its score; were half of its predictions of one class, the score would say nothing."""
    floor, epoch = candidate(0.8, 0.36), candidate(0.8, 0.95, target_sure=0.6)
    assert compare_with_floor("infomax", floor, epoch, gate=0.1).prefers_floor
    turned = epoch.target_probs_NC.copy()
    turned[: ROWS // 4] = [0.6, 0.2, 0.2]
    assert not compare_with_floor("infomax", floor, replace(epoch, target_probs_NC=turned), gate=0.1).prefers_floor


def test_without_labelled_validation_rows_of_the_sources_the_epoch_stays() -> None:
    def without(inputs: ValidatorInputs) -> ValidatorInputs:
        names = ("source_probs_MC", "source_features_MK", "source_labels_M")
        return replace(inputs, **{name: getattr(inputs, name)[:0] for name in names})

    assert not compare_with_floor("infomax", without(candidate(1, 0.9)), without(candidate(0, 0.4)), 0.1).prefers_floor


@pytest.mark.parametrize("validator", ["ensv", "mixval", "snd", "source_accuracy"])
def test_every_kind_of_validator_answers(validator: str) -> None:
    found = compare_with_floor(validator, candidate(0.9, 0.4), candidate(0.5, 0.9), gate=1.0)  # type: ignore[arg-type]
    assert np.isfinite(found.score)
