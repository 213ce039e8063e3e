"""The objective: the weighted terms by name. Loop, logs and report iterate over the names and know none of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.adversarial import Discriminators, adversarial
from trainers.m2can.losses.class_confusion import class_confusion
from trainers.m2can.losses.cross_domain import cross_domain
from trainers.m2can.losses.cross_modal import cross_modal
from trainers.m2can.losses.cross_prediction import cross_prediction
from trainers.m2can.losses.moments import moment_distance
from trainers.m2can.losses.task import task
from trainers.m2can.names import Adversary
from trainers.m2can.source_weights import hardest_sources

TERMS = ("task", "cmcfa", "cdcfa", "cdafa", "mcc", "moments", "imitation")


@dataclass(frozen=True)
class Objective:
    """total = task + λ_cm·CMCFA + λ_cd·CDCFA + λ_adv·CDAFA + λ_mcc·MCC + …; a weight of 0 means not computed.

    Args:
        num_sources: S; the domain after the sources is the target.
        cmcfa, cdcfa, cdafa, mcc: the weights λ.
        moments, imitation: weights of moment matching and of cross-modal prediction, which M2CAN does not have.
        temperature: T of MCC.
        smoothing: ε of the discriminators' labels.
        discriminators: with `mdan`, sources of larger loss weigh more in the task term and in CDAFA.
    """

    num_sources: int
    cmcfa: float = 0.5
    cdcfa: float = 0.2
    cdafa: float = 0.05
    mcc: float = 0.05
    temperature: float = 2.0
    smoothing: float = 0.8
    moments: float = 0.0
    imitation: float = 0.0
    discriminators: Adversary = "m2can"

    def __call__(
        self, outputs: Outputs, batch: Batch, collective: Collective, discriminators: Discriminators | None = None
    ) -> dict[str, Tensor]:
        """This worker's share of each term, weighted; CDAFA only where discriminators are given.

        Returns:
            scalars by name, in the order of TERMS; what has weight 0 or does not take part is absent.
        """
        weight_D = None
        if self.discriminators == "mdan":
            weight_D = hardest_sources(outputs, batch, self.num_sources, collective)
        terms = {"task": task(outputs, batch, collective, weight_D)}
        if self.cmcfa:
            terms["cmcfa"] = self.cmcfa * cross_modal(outputs, batch, collective)
        if self.cdcfa:
            terms["cdcfa"] = self.cdcfa * cross_domain(outputs, batch, collective)
        if self.cdafa and discriminators is not None:
            terms["cdafa"] = self.cdafa * adversarial(outputs, batch, discriminators, self.smoothing, weight_D)
        if self.mcc and batch.num_domains > self.num_sources:
            logits_BC = outputs.fused_logits_DBC[self.num_sources]
            terms["mcc"] = self.mcc * class_confusion(logits_BC, self.temperature, collective)
        if self.moments:
            terms["moments"] = self.moments * moment_distance(outputs, batch, collective)
        if self.imitation:
            terms["imitation"] = self.imitation * cross_prediction(outputs, batch)
        return terms
