"""MCC: minimum class confusion on the target."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.m2can.collective import Collective
from trainers.m2can.losses.inputs import TermInputs


def term(inputs: TermInputs) -> Tensor:
    logits_BC = inputs.outputs.fused_logits_DBC[inputs.num_sources]
    return class_confusion(logits_BC, inputs.temperature, inputs.collective)


def class_confusion(logits_BC: Tensor, temperature: float, collective: Collective) -> Tensor:
    r"""(Σ M − tr M) / C with M = (w∘P)ᵀP, its rows divided by the column sums.

    P = softmax(z/T); w_i ∝ 1 + exp(−H(p_i)) without gradient. Published weights sum to the batch size; the division takes
    any factor of theirs out.

    Source: Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020, arXiv:1912.03699.

    Args:
        logits_BC: the target's fused logits, this worker's rows.
        temperature: T > 0.

    Returns:
        scalar, this worker's share.
    """
    probs_BC = torch.softmax(logits_BC / temperature, -1)
    with torch.no_grad():
        entropy_B = -(probs_BC * (probs_BC + 1e-5).log()).sum(-1)
        weight_B = 1 + (-entropy_B).exp()
    confusion_CC = collective.sum((weight_B.unsqueeze(1) * probs_BC).T @ probs_BC)
    confusion_CC = confusion_CC / confusion_CC.sum(1, keepdim=True)
    return (confusion_CC.sum() - confusion_CC.trace()) / logits_BC.shape[1] / collective.world_size
