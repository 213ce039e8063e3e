"""Inputs of a loss term."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators


@dataclass(frozen=True)
class TermInputs:
    """One pass, and the settings of the objective.

    Args:
        num_sources: S; the domain after the sources is the target.
        discriminators: None in SAM's first pass, which leaves CDAFA out.
        weight_D: weight of each domain in the task term, and of its pair with the target in CDAFA; None: 1.
        temperature: T of MCC.
        smoothing: ε of the discriminators' labels.
    """

    outputs: Outputs
    batch: Batch
    collective: Collective
    num_sources: int
    discriminators: Discriminators | None = None
    weight_D: Tensor | None = None
    temperature: float = 2.0
    smoothing: float = 0.8

    @property
    def target_takes_part(self) -> bool:
        return self.batch.num_domains > self.num_sources
