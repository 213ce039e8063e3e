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
from trainers.m2can.losses.task import task

TERMS = ("task", "cmcfa", "cdcfa", "cdafa", "mcc")


@dataclass(frozen=True)
class Objective:
    """total = task + λ_cm·CMCFA + λ_cd·CDCFA + λ_adv·CDAFA + λ_mcc·MCC; a weight of 0 means not computed.

    Args:
        num_sources: S; the domain after the sources is the target.
        cmcfa, cdcfa, cdafa, mcc: the weights λ.
        temperature: T of MCC.
        smoothing: ε of the discriminators' labels.
    """

    num_sources: int
    cmcfa: float = 0.5
    cdcfa: float = 0.2
    cdafa: float = 0.05
    mcc: float = 0.05
    temperature: float = 2.0
    smoothing: float = 0.8

    def __call__(
        self, outputs: Outputs, batch: Batch, collective: Collective, discriminators: Discriminators | None = None
    ) -> dict[str, Tensor]:
        """This worker's share of each term, weighted; CDAFA only where discriminators are given.

        Returns:
            scalars by name, in the order of TERMS; what has weight 0 or does not take part is absent.
        """
        terms = {"task": task(outputs, batch, collective)}
        if self.cmcfa:
            terms["cmcfa"] = self.cmcfa * cross_modal(outputs, batch, collective)
        if self.cdcfa:
            terms["cdcfa"] = self.cdcfa * cross_domain(outputs, batch, collective)
        if self.cdafa and discriminators is not None:
            terms["cdafa"] = self.cdafa * adversarial(outputs, batch, discriminators, self.smoothing)
        if self.mcc and batch.num_domains > self.num_sources:
            logits_BC = outputs.fused_logits_DBC[self.num_sources]
            terms["mcc"] = self.mcc * class_confusion(logits_BC, batch.global_batch, self.temperature, collective)
        return terms
