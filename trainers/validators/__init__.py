"""Choosing an epoch or a trial without target labels. A validator says by its arguments which predictions it needs.

Legend: N target rows, M source validation rows, K features, C classes, R mixed pairs, E candidates (epochs or trials).
All scores: higher is better.
"""

from trainers.validators.agreement import ensv
from trainers.validators.choice import (
    NEED_SOURCE_VALIDATION,
    VALIDATORS,
    Validator,
    candidate_scores,
    choose_candidate,
    choose_epoch,
    epoch_score,
    verdicts,
)
from trainers.validators.confidence import bnm, corr_c, entropy, infomax, negative_entropy, source_accuracy
from trainers.validators.inputs import ValidatorInputs
from trainers.validators.mixing import interpolation_consistency, mixval
from trainers.validators.reweighting import density_ratio, dev, devn
from trainers.validators.structure import class_ami, snd

__all__ = [
    "NEED_SOURCE_VALIDATION",
    "VALIDATORS",
    "Validator",
    "ValidatorInputs",
    "bnm",
    "candidate_scores",
    "choose_candidate",
    "choose_epoch",
    "class_ami",
    "corr_c",
    "density_ratio",
    "dev",
    "devn",
    "ensv",
    "entropy",
    "epoch_score",
    "infomax",
    "interpolation_consistency",
    "mixval",
    "negative_entropy",
    "snd",
    "source_accuracy",
    "verdicts",
]
