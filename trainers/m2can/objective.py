"""The objective: the weighted terms by name. Loop, logs and report iterate over the names and know none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from trainers.m2can import losses
from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.losses.inputs import TermInputs
from trainers.m2can.names import Adversary
from trainers.m2can.source_weights import hardest_sources


def default_weights() -> dict[str, float]:
    """The published weights; 0 for terms that M2CAN does not have."""
    return {term.name: term.weight for term in losses.TERMS if term.weight is not None}


@dataclass(frozen=True)
class Objective:
    """total = task + λ_cm·CMCFA + λ_cd·CDCFA + λ_adv·CDAFA + λ_mcc·MCC + …

    Args:
        num_sources: S; the domain after the sources is the target.
        weights: λ by the term's name; a term of weight 0, or without one, is not computed.
        temperature, smoothing: see TermInputs.
        discriminators: with `mdan`, sources of larger loss weigh more in the task term and in CDAFA.
    """

    num_sources: int
    weights: Mapping[str, float] = field(default_factory=default_weights)
    temperature: float = 2.0
    smoothing: float = 0.8
    discriminators: Adversary = "m2can"

    def __call__(
        self, outputs: Outputs, batch: Batch, collective: Collective, discriminators: Discriminators | None = None
    ) -> dict[str, Tensor]:
        """This worker's share of each term, weighted; CDAFA only where discriminators are given.

        Returns:
            scalars by name, in the order of losses.TERMS; what has weight 0 or does not take part is absent.
        """
        weight_D = None
        if self.discriminators == "mdan":
            weight_D = hardest_sources(outputs, batch, self.num_sources, collective)
        inputs = TermInputs(
            outputs, batch, collective, self.num_sources, discriminators, weight_D, self.temperature, self.smoothing
        )
        shares = {}
        for term in losses.TERMS:
            weight = 1.0 if term.weight is None else self.weights.get(term.name, 0.0)
            if weight and term.takes_part(inputs):
                shares[term.name] = weight * term(inputs)
        return shares
