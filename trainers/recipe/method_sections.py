"""Sections of the method: objective, network, pseudo labels, SAM, optimizer, schedule, and the choice of the checkpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainers.m2can import losses
from trainers.m2can.names import Adversary, Modalities
from trainers.recipe.base import Count, Fraction, NotNegative, Positive, Section
from trainers.validators import Validator


def _weight_of(term: str) -> Any:
    """The key of a term's weight; its default and meaning stand in trainers.m2can.losses."""
    entry = losses.term_named(term)
    return Field(entry.weight, description=entry.meaning)


class ObjectiveSection(Section):
    """Weights and settings of the loss terms. A term of weight 0 is not computed."""

    cmcfa: NotNegative = _weight_of("cmcfa")
    cdcfa: NotNegative = _weight_of("cdcfa")
    cdafa: NotNegative = _weight_of("cdafa")
    mcc: NotNegative = _weight_of("mcc")
    moments: NotNegative = _weight_of("moments")
    imitation: NotNegative = _weight_of("imitation")
    temperature: Positive = Field(2.0, description="Temperature T of MCC.")
    smoothing: Fraction = Field(0.8, description="Smoothing ε of the discriminators' labels: 1 − ε and ε.")
    discriminators: Adversary = Field(
        "m2can",
        description="Which domains the discriminators of CDAFA tell apart, and from what. `m2can`: every pair of domains, "
        "from softmax ⊗ features. `dann`: all sources together and the target, from features. `cdan`: the same from "
        "softmax ⊗ features. `mdan`: each source and the target, from features, and sources of larger loss weigh more. "
        "The baselines have 64 hidden units and a warm-up of 100 steps, `m2can` has none and 1,000 steps.",
    )

    def weights(self) -> dict[str, float]:
        """λ by the term's name."""
        return {term.name: getattr(self, term.name) for term in losses.weighted_terms()}


class NetworkSection(Section):
    """Which modalities the network reads, and what it makes of those that a record lacks."""

    modalities: Modalities = Field(
        "both", description="`text` and `pictures` replace the other modality's features by zeros: baselines."
    )
    modality_dropout: Annotated[float, Field(ge=0, le=0.5)] | None = Field(
        None,
        description="A number: a learned feature takes the place of texts or pictures that a record lacks, and in training a "
        "record's texts are left out with this probability, and its pictures with the same, never both. `null`: no learned "
        "features.",
    )


class Uacr(Section):
    """Pseudo labels of the target (uncertainty-aware classifier refinement)."""

    enabled: bool = Field(True, description="Without it the target has no pseudo labels.")
    threshold: Fraction = Field(
        0.0,
        description="Lowest score of a pseudo label. Target samples with a lower score are left out, whatever the rate, but for "
        "a tenth of each class's part.",
    )
    warmup: Annotated[int, Field(ge=0)] | None = Field(
        1,
        description="Epochs before the first pseudo labels. 0: the floor gives the first ones, before the first epoch, and votes "
        "in the later ones; with encoders that are trained, or without a floor, they begin after the first epoch. `null`: 0 "
        "on frozen encoders unless `uacr.prior` is `uniform`, else three tenths of `train.epochs`.",
    )
    start: Fraction = Field(
        0.3,
        description="Fraction of the target that gets pseudo labels in the first epoch after the warm-up. The rate is "
        "min(start + n · update, 1), n epochs later.",
    )
    update: Fraction | None = Field(
        0.3,
        description="What the rate grows by in each epoch; see `uacr.start`. `null`: 0.7 over the epochs after the warm-up.",
    )
    prior: Literal["uniform", "auto"] | list[Positive] = Field(
        "uniform",
        description="Class shares of the target, which the numbers of pseudo labels follow: `uniform`, one number for each "
        "class, or `auto`: on frozen encoders estimated with the floor, where the sources agree on them, else uniform.",
    )


class Sam(Section):
    """Sharpness-aware minimisation."""

    rho: NotNegative = Field(
        0.05, description="Radius ρ of the perturbation of the weights. 0: one pass a step, without SAM."
    )


class LearningRates(Section):
    """Learning rates of the network's parts, before the schedule. `null`: by what is trained, see [Method](method.md)."""

    encoders: NotNegative | None = Field(2e-5, description="Of both encoders.")
    projections: NotNegative | None = Field(2e-5, description="Of both projections.")
    fusion: NotNegative | None = Field(5e-4, description="Of the fusion.")
    heads: NotNegative | None = Field(5e-4, description="Of all classifier heads.")
    discriminators_source: NotNegative | None = Field(2e-4, description="Of the discriminators between two sources.")
    discriminators_target: NotNegative | None = Field(
        3e-4, description="Of the discriminators between a source and the target."
    )


class OptimizerSection(Section):
    """One optimizer for the network and one for the discriminators, with the same settings."""

    type: Literal["adam", "adamw", "sgd", "adadelta"] = Field("adam", description="Which optimizer.")
    betas: tuple[Fraction, Fraction] = Field(
        (0.9, 0.999), description="β₁ and β₂ of adam and adamw. `sgd` takes β₁ as its momentum."
    )
    eps: Positive = Field(1e-8, description="ε of adam, adamw and adadelta.")
    weight_decay: NotNegative = Field(0.0, description="Of all parts.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="What an encoder's block has of the rate of the block behind it; the last one has `lr.encoders`. Blocks are "
        "those that `freeze` counts.",
    )
    lr: LearningRates = LearningRates()


class ScheduleSection(Section):
    """How all learning rates fall over the run."""

    mode: Literal["poly", "cosine", "multistep", "constant"] = Field("poly", description="Shape of the curve.")
    power: Positive = Field(0.99, description="Exponent of `poly`.")
    lowest_lr: NotNegative = Field(1e-6, description="Where `poly` and `cosine` end. Left out, `cosine` ends at 0.")
    multistep: list[Count] = Field(
        default_factory=list, description="Epochs after which the rates of `multistep` fall to a tenth."
    )

    @model_validator(mode="before")
    @classmethod
    def _cosine_ends_at_zero(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mode") == "cosine":
            return {"lowest_lr": 0.0} | values
        return values


class Selection(Section):
    """How the checkpoint is chosen without target labels."""

    validator: Validator = Field("infomax", description="Score of an epoch; see [Method](method.md).")
    gate: Fraction = Field(
        0.03, description="Source accuracy that an epoch may lie below the best epoch's and still be chosen."
    )
