"""The recipe's sections of the method itself, and what all sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from trainers.m2can.names import Modalities, Pairs, Refinement, ScoreOf, Seen, SourceWeights

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_booleans(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("is a boolean (YAML takes on, off, yes and no for one), which does not belong here")
        return value


def _takes_booleans(annotation: Any) -> bool:
    return bool in (annotation, *get_args(annotation))


class ObjectiveSection(Section):
    """Weights of the terms; 0 = not computed."""

    cmcfa: NotNegative = 0.5
    cdcfa: NotNegative = 0.2
    cdafa: NotNegative = 0.05
    mcc: NotNegative = 0.05
    temperature: Positive = 2.0
    smoothing: Fraction = 0.8
    moments: NotNegative = 0.0  # moment matching (M3SDA)
    imitation: NotNegative = 0.0  # each modality's head learns the other's prediction (after xMUDA)
    cmcfa_temperature: Annotated[float, Field(ge=0.02, allow_inf_nan=False)] = 1.0
    cmcfa_symmetric: bool = False  # pictures look for texts too
    source_weights: SourceWeights = (
        "uniform"  # `proximity`: the nearer to the target; `hardest`: the larger its loss (MDAN)
    )


class DiscriminatorSection(Section):
    """Who tells which domains apart, from what."""

    pairs: Pairs = (
        "all"  # `target`: each source and the target (MDAN); `merged`: all sources and the target (DANN, CDAN)
    )
    seen: Seen = "joint"  # features with predictions, or `features` alone (DANN)
    hidden: Annotated[int, Field(ge=0)] = 0  # units of a hidden layer; 0: linear
    warmup: Positive = 1000.0  # steps over which the reversal of gradients grows


class NetworkSection(Section):
    modalities: Modalities = "both"
    gate: bool = False  # each sample weighs its text and its pictures


class Uacr(Section):
    """Pseudo labels. `unselected`: what becomes of target samples without one: left out, or used by alignment and MCC."""

    enabled: bool = True
    score: ScoreOf = "both"  # what a sample's score is made of: probability, agreement of the heads, or both
    threshold: Fraction = 0.0  # samples with a lower score are left out, whatever the rate
    labels: Literal["hard", "soft"] = "hard"  # soft: the task term learns the probabilities
    teacher: Literal["none", "ema"] = "none"  # who labels: the network, or the moving average of its weights
    ema_decay: Fraction = 0.99  # of the teacher, by step
    refine: Refinement = "none"  # average over nearest target samples; see trainers.m2can.neighbourhood
    neighbours: Count = 5
    balance: bool = False  # labels and scores follow the prior (Sinkhorn), not only the number kept
    warmup: Count = 1  # epochs before the first pseudo labels
    start: Fraction = 0.3
    update: Fraction = 0.3
    prior: Literal["uniform", "estimated"] | list[Positive] = "uniform"
    unselected: Literal["drop", "align"] = "drop"


class Sam(Section):
    """Sharpness-aware minimisation; rho 0 = off. `scope`: climb along the global batch's gradient or the worker's own."""

    rho: NotNegative = 0.05
    scope: Literal["global", "worker"] = "global"
    every: Count = 1  # k: only every k-th step climbs; the others cost one pass instead of two
