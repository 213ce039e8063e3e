"""The loss terms: each is named once, in TERMS, and has a file of its own.

This file imports no torch, so that recipes, the command line and reports can read the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.m2can.losses.inputs import TermInputs


@dataclass(frozen=True)
class Term:
    """One term of the objective.

    Args:
        name: of its weight in a recipe, `objective.<name>`, and of its metric, `loss/<name>`.
        label: in reports.
        module: in trainers.m2can.losses, with a function `term(inputs)` that returns this worker's share of its value.
        weight: default of its weight; None: it has none and is always computed.
        meaning: of its weight.
        needs: what must take part in a pass for the term to be computed.
    """

    name: str
    label: str
    module: str
    weight: float | None
    meaning: str = ""
    needs: Literal["nothing", "target", "discriminators"] = "nothing"

    def takes_part(self, inputs: TermInputs) -> bool:
        """Whether the pass has what the term needs."""
        if self.needs == "target":
            return inputs.target_takes_part
        return self.needs != "discriminators" or inputs.discriminators is not None

    def __call__(self, inputs: TermInputs) -> Tensor:
        """This worker's share of the term's value, a scalar without the weight."""
        return import_module(f"{__name__}.{self.module}").term(inputs)


TERMS = (
    Term("task", "task: cross-entropy", "task", None),
    Term("cmcfa", "CMCFA: text ↔ picture", "cross_modal", 0.5, "Weight of CMCFA, the contrast of texts with pictures."),
    Term("cdcfa", "CDCFA: domain ↔ domain", "cross_domain", 0.2, "Weight of CDCFA, the alignment of domains."),
    Term("cdafa", "CDAFA: adversarial", "adversarial", 0.05, "Weight of CDAFA, the adversarial term.", "discriminators"),
    Term("mcc", "MCC: class confusion", "class_confusion", 0.05, "Weight of MCC, class confusion on the target.", "target"),
    Term("moments", "moment matching", "moment_matching", 0.0, "Weight of moment matching (the baseline M3SDA)."),
    Term("imitation", "text and picture heads", "cross_prediction", 0.0,
         "Weight of cross-modal imitation: each modality's head learns the other's prediction (the baseline xMUDA)."),
)  # fmt: skip


def weighted_terms() -> tuple[Term, ...]:
    """The terms that a recipe gives a weight."""
    return tuple(term for term in TERMS if term.weight is not None)


def term_named(name: str) -> Term:
    """Raises KeyError: no such term."""
    return {term.name: term for term in TERMS}[name]
