"""Loss terms of other forms, given what trainers.m2can.losses gives a term."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.losses import task
from trainers.m2can.losses.cross_modal import divergence
from trainers.m2can.losses.inputs import TermInputs


def cross_modal_of(inputs: TermInputs, temperature: float, symmetric: bool) -> Tensor:
    """CMCFA whose inner products are divided by a temperature, and in which pictures look for texts too.

    Source: Radford et al. (CLIP), ICML 2021.
    """
    text, picture, batch = inputs.outputs.text_VDBK, inputs.outputs.picture_VDBK, inputs.batch
    ratio_DB = _contrast(text, picture, inputs, temperature)
    if symmetric:
        ratio_DB = (ratio_DB + _contrast(picture, text, inputs, temperature)) / 2
    uncertainty_DB = divergence(inputs.outputs.picture_logits_DBC, inputs.outputs.text_logits_DBC)
    return (ratio_DB * (-uncertainty_DB).exp() + uncertainty_DB).sum() / batch.global_batch


def _contrast(query_VDBK: Tensor, key_VDBK: Tensor, inputs: TermInputs, temperature: float) -> Tensor:
    """ℓ_i of every query on one worker, [D, B]."""
    inner = (query_VDBK.unsqueeze(1) @ key_VDBK.unsqueeze(0).transpose(-1, -2) / temperature).exp()
    positive_DB = inner.diagonal(dim1=-2, dim2=-1).sum((0, 1))
    return inner.sum((0, 1, -1)).log() - positive_DB.log()


def task_of_soft_labels(inputs: TermInputs, soft_BC: Tensor) -> Tensor:
    """The task term with −Σ_c q_c log p_c in the place of the target's cross-entropies, where it has pseudo labels.

    Args:
        soft_BC: class probabilities q of the target's rows.
    """
    outputs, batch, target = inputs.outputs, inputs.batch, inputs.num_sources
    labels_DB = batch.labels_DB
    without_target = replace(batch, labels_DB=labels_DB.clone(), labelled_D=None)
    without_target.labels_DB[target] = -1
    hard = task.task(outputs, without_target, inputs.collective, inputs.weight_D)
    labelled_B = labels_DB[target] >= 0

    def soft(logits_XBC: Tensor) -> Tensor:
        loss_XB = -(soft_BC * F.log_softmax(logits_XBC, -1)).sum(-1) * labelled_B
        return loss_XB.mean(0).sum() / labelled_B.sum().clamp_min(1)

    heads = soft(outputs.logits_HQDBC[:, :, target].flatten(0, 1))
    fused = soft(outputs.fused_logits_DBC[target].unsqueeze(0))
    single = soft(torch.stack([outputs.text_logits_DBC[target], outputs.picture_logits_DBC[target]]))
    weight = 1 if inputs.weight_D is None else inputs.weight_D[target]
    return hard + weight * (heads + fused + single) / batch.num_domains


@torch.no_grad()
def proximity(inputs: TermInputs) -> Tensor | None:
    """Weights of the domains: S·softmax(−d_s / mean d) of the sources, d_s the squared distance of the source's mean text
    and picture features to the target's; None while the target takes no part."""
    if not inputs.target_takes_part:
        return None
    text, picture = inputs.outputs.text_VDBK[0], inputs.outputs.picture_VDBK[0]
    means_DK = torch.cat([text.mean(1), picture.mean(1)], -1)
    distance_S = (means_DK[: inputs.num_sources] - means_DK[-1]).square().sum(-1)
    level_S = -distance_S / distance_S.mean().clamp_min(1e-12)
    weight_D = torch.ones(len(means_DK), dtype=level_S.dtype, device=level_S.device)
    weight_D[: inputs.num_sources] = inputs.num_sources * level_S.softmax(0)
    return weight_D
