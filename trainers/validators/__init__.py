"""Choosing an epoch or a trial without target labels. A validator says by its arguments which predictions it needs.

Legend: N target rows, M source validation rows, K features, C classes, R mixed pairs, E candidates (epochs or trials).
All scores: higher is better.
"""

from trainers.validators.choice import (
    NEED_SOURCE_VALIDATION,
    Validator,
    choose_candidate,
    choose_epoch,
    epoch_score,
    verdicts,
)
from trainers.validators.floor import compare_with_floor
from trainers.validators.inputs import ValidatorInputs

__all__ = [
    "NEED_SOURCE_VALIDATION",
    "Validator",
    "ValidatorInputs",
    "choose_candidate",
    "choose_epoch",
    "compare_with_floor",
    "epoch_score",
    "verdicts",
]
