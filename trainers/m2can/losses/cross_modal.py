"""CMCFA: cross-modal contrastive feature alignment, weighed by the disagreement of the two modalities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.inputs import TermInputs


def term(inputs: TermInputs) -> Tensor:
    return cross_modal(inputs.outputs, inputs.batch, inputs.collective)


def cross_modal(outputs: Outputs, batch: Batch, collective: Collective) -> Tensor:
    r"""Loss_d = mean_i(ℓ_i·exp(−u_i)) + mean_i(u_i), summed over the domains.

    ℓ_i = −log(pos_i / all_i), pos_i = Σ_{view pairs} exp(t_i·v_i), all_i = Σ_{view pairs} Σ_j exp(t_i·v_j) over the
    global batch, i included; u_i = KL(p_picture,i ‖ p_text,i) of the single-modality heads on the weak views, with
    gradients through both. There is no temperature, and texts look for pictures only.

    Source: Zhao et al. 2025; the weighting is the uncertainty rectification of Zheng and Yang, IJCV 2021.

    Returns:
        scalar, this worker's share.
    """
    ratio_DB = contrast(outputs.text_VDBK, outputs.picture_VDBK, batch, collective)
    uncertainty_DB = divergence(outputs.picture_logits_DBC, outputs.text_logits_DBC)
    return (ratio_DB * (-uncertainty_DB).exp() + uncertainty_DB).sum() / batch.global_batch


def contrast(query_VDBK: Tensor, key_VDBK: Tensor, batch: Batch, collective: Collective) -> Tensor:
    """ℓ_i of every local query, [D, B]; the keys of all workers are the candidates."""
    views, domains, size, width = key_VDBK.shape
    local = key_VDBK.reshape(views * domains, size, width)
    everyone = collective.gather(local, batch.global_batch).reshape(views, domains, batch.global_batch, width)
    # Every inner product of domain d, at most 1 in size since the features are unit vectors: exp cannot overflow.
    inner = (query_VDBK.unsqueeze(1) @ everyone.unsqueeze(0).transpose(-1, -2)).exp()
    own = inner.narrow(-1, batch.offset, size).diagonal(dim1=-2, dim2=-1)
    positive_DB = own.sum((0, 1))
    all_DB = inner.sum((0, 1, -1))
    return all_DB.log() - positive_DB.log()


def divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p ‖ q) of two softmax distributions over the last dimension."""
    log_p, log_q = F.log_softmax(p_logits, -1), F.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
