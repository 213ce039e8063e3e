"""The floor against the chosen epoch, without target labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainers.validators.choice import Validator, choose_candidate, epoch_score
from trainers.validators.inputs import ValidatorInputs

# By how much the predicted class shares may differ (sum of absolute differences, 0 to 2); chosen on benchmarks/choose_preset.py's
# data sets and on those of benchmarks/expected.py.
SAME_SHARES = 0.15
_SHARPEST, _STEPS = 1e4, 60  # of the factor of logits, and halvings of the interval that holds it


@dataclass(frozen=True)
class Comparison:
    """prefers_floor: whether the floor is chosen. score: of the floor, as sure as the epoch; see `compare_with_floor`."""

    prefers_floor: bool
    score: float


def compare_with_floor(validator: Validator, floor: ValidatorInputs, epoch: ValidatorInputs, gate: float) -> Comparison:
    """Choose between the floor and the epoch that a validator chose, behind the gate of choose_epoch.

    Validators read how sure predictions are, and those of a probe with strong decay are unsure whatever they know. So the
    floor's logits are first multiplied by the number that makes it as sure of the sources' validation rows as the epoch is:
    of the same mean entropy. No predicted class changes by that. Without such rows there is no measure, and the epoch stays.

    It stays, too, where the two predict other class shares (by more than SAME_SHARES): the floor's are drawn towards the assumed
    ones, and a validator that takes classes of equal shares for a good sign cannot judge between them.
    """
    if not len(epoch.source_labels_M):
        return Comparison(False, epoch_score(validator, floor))
    scaled = as_sure_as(floor, epoch)
    is_better = choose_candidate(validator, [scaled, epoch], gate) == 0
    apart = np.abs(_class_shares(floor.target_probs_NC) - _class_shares(epoch.target_probs_NC)).sum()
    return Comparison(is_better and bool(apart <= SAME_SHARES), epoch_score(validator, scaled))


def as_sure_as(floor: ValidatorInputs, epoch: ValidatorInputs) -> ValidatorInputs:
    """The floor's predictions with the epoch's mean entropy on the sources' validation rows."""
    wanted, low, high = _mean_entropy(epoch.source_probs_MC), 0.0, _SHARPEST
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5 if low else high / 2
        unsure = _mean_entropy(_scaled(floor.source_probs_MC, middle)) > wanted
        low, high = (middle, high) if unsure else (low, middle)
    names = ("target_probs_NC", "source_probs_MC", "mixed_probs_RC")
    return replace(floor, **{name: _scaled(getattr(floor, name), high) for name in names})


def _scaled(probs_NC: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities of logits that are multiplied by `factor`."""
    logits_NC = factor * np.log(probs_NC.astype(float).clip(1e-30))
    exponentials_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return exponentials_NC / exponentials_NC.sum(1, keepdims=True)


def _class_shares(probs_NC: np.ndarray) -> np.ndarray:
    """Of the predicted classes, [C]."""
    return np.bincount(probs_NC.argmax(1), minlength=probs_NC.shape[1]) / max(len(probs_NC), 1)


def _mean_entropy(probs_NC: np.ndarray) -> float:
    probs_NC = probs_NC.astype(float)
    return float(-(probs_NC * np.log(probs_NC.clip(1e-30))).sum(1).mean())
