"""CDCFA: cross-domain contrastive feature alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.inputs import TermInputs

SCALE = 1 / 8  # fixed in the published method, whatever the number of domains


def term(inputs: TermInputs) -> Tensor:
    return cross_domain(inputs.outputs, inputs.batch, inputs.collective)


def cross_domain(outputs: Outputs, batch: Batch, collective: Collective) -> Tensor:
    r"""−(1/8)·Σ_{s<t} Σ_{view pairs} [mean of T_s T_tᵀ + mean of V_s V_tᵀ].

    The mean of all inner products of two sets is the inner product of their means, so each domain's mean feature is a
    sufficient statistic: O(B) instead of O(B²), and one small sum over the workers.

    Source: Zhao et al. 2025.

    Returns:
        scalar, this worker's share (zero for a single domain).
    """
    sums_MDK = torch.stack([outputs.text_VDBK.sum((0, 2)), outputs.picture_VDBK.sum((0, 2))])
    means_MDK = collective.sum(sums_MDK) / batch.global_batch
    # Σ_{s<t} ⟨m_s, m_t⟩ = (‖Σ_s m_s‖² − Σ_s ‖m_s‖²) / 2
    pairs = (means_MDK.sum(1).square().sum() - means_MDK.square().sum()) / 2
    return -SCALE * pairs / collective.world_size
