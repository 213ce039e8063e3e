"""Scores of candidates, the choice among them, and its regret."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from trainers.validators.agreement import ensv
from trainers.validators.confidence import bnm, corr_c, infomax, negative_entropy, source_accuracy
from trainers.validators.inputs import ValidatorInputs
from trainers.validators.mixing import interpolation_consistency, mixval
from trainers.validators.reweighting import dev, devn
from trainers.validators.structure import class_ami, snd

Validator = Literal[
    "ensv", "infomax", "source_accuracy", "entropy", "corr_c", "bnm", "snd", "dev", "devn", "class_ami", "mixval"
]
VALIDATORS: tuple[Validator, ...] = get_args(Validator)
NEED_SOURCE_VALIDATION = ("source_accuracy", "dev", "devn")


def _reweighted(risk: Callable[[np.ndarray, np.ndarray], float], e: ValidatorInputs) -> float:
    if not len(e.source_labels_M):
        return float("nan")
    return risk(e.source_weights_M, e.source_losses_M)


def _consistency(e: ValidatorInputs) -> np.ndarray:
    return interpolation_consistency(e.mixed_probs_RC, e.mixed_dominant_R, e.mixed_other_R)


# Scores of one candidate by itself. EnsV has none; MixVal's is the mean of both consistencies.
_ALONE: dict[str, Callable[[ValidatorInputs], float]] = {
    "infomax": lambda e: infomax(e.target_probs_NC),
    "source_accuracy": lambda e: source_accuracy(e.source_probs_MC, e.source_labels_M),
    "entropy": lambda e: negative_entropy(e.target_probs_NC),
    "corr_c": lambda e: corr_c(e.target_probs_NC),
    "bnm": lambda e: bnm(e.target_probs_NC),
    "snd": lambda e: snd(e.target_probs_NC),
    "dev": lambda e: _reweighted(dev, e),
    "devn": lambda e: _reweighted(devn, e),
    "class_ami": lambda e: class_ami(e.target_probs_NC, e.target_features_NK),
    "mixval": lambda e: float(np.nan_to_num(_consistency(e)).mean()),
}


def epoch_score(validator: Validator, inputs: ValidatorInputs) -> float:
    """The score of one epoch alone, for curves and early stopping. EnsV needs several candidates: infomax takes its place."""
    return _ALONE["infomax" if validator == "ensv" else validator](inputs)


def candidate_scores(validator: Validator, inputs: Sequence[ValidatorInputs]) -> list[float]:
    """Scores of candidates, of which some validators compare all with each other."""
    if validator == "ensv":
        return ensv([e.target_probs_NC for e in inputs])
    if validator == "mixval":
        return mixval([_consistency(e) for e in inputs])
    return [_ALONE[validator](e) for e in inputs]


def choose_candidate(validator: Validator, inputs: Sequence[ValidatorInputs], gate: float) -> int:
    """Position of the best candidate by a validator, behind the gate of choose_epoch."""
    accuracies = [source_accuracy(e.source_probs_MC, e.source_labels_M) for e in inputs]
    known = [None if np.isnan(accuracy) else accuracy for accuracy in accuracies]
    return choose_epoch(candidate_scores(validator, inputs), known, gate)


def choose_epoch(scores: Sequence[float], source_accuracies: Sequence[float | None], gate: float) -> int:
    """Position of the highest score among epochs whose source accuracy is within `gate` of the best epoch's.

    The gate excludes epochs that are confident about the target because they have forgotten the task. Ties go to the later
    epoch. Without source accuracies every epoch is admitted.

    Args:
        scores: a validator's, one an epoch; not a number is never chosen while another is there.
        source_accuracies: mean validation accuracy over the sources, 0 to 1, or None.
        gate: 0 to 1.

    Raises:
        ValueError: no epochs.
    """
    if not len(scores):
        raise ValueError("there is no epoch to choose from")
    known = [accuracy for accuracy in source_accuracies if accuracy is not None]
    least = max(known) - gate if known else 0.0
    admitted = [i for i, accuracy in enumerate(source_accuracies) if accuracy is None or accuracy >= least]
    return max(admitted, key=lambda i: (scores[i] if np.isfinite(scores[i]) else -np.inf, i))


def verdicts(
    inputs: Sequence[ValidatorInputs], target_accuracies: Sequence[float | None], gate: float
) -> list[dict[str, Any]]:
    """What every validator would have chosen, for reports: {validator, position, accuracy, regret}, best first.

    Args:
        target_accuracies: by the target's labels, which no validator sees; None where there are none.
    """
    labelled = [accuracy for accuracy in target_accuracies if accuracy is not None]
    rows: list[dict[str, Any]] = []
    for validator in VALIDATORS:
        if validator in NEED_SOURCE_VALIDATION and not len(inputs[0].source_labels_M):
            continue
        position = choose_candidate(validator, inputs, gate)
        accuracy = target_accuracies[position]
        regret = max(labelled) - accuracy if accuracy is not None else None
        rows.append({"validator": validator, "position": position, "accuracy": accuracy, "regret": regret})
    return sorted(rows, key=lambda row: (row["regret"] is None, row["regret"] or 0.0))
