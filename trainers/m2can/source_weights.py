"""MDAN: how much each source counts in a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective


@torch.no_grad()
def hardest_sources(outputs: Outputs, batch: Batch, num_sources: int, collective: Collective) -> Tensor:
    """Weights of the domains [D]: S·softmax(cross-entropy) of the sources, a soft maximum; 1 of the target.

    Source: Zhao et al., "Adversarial Multiple Source Domain Adaptation" (MDAN), NeurIPS 2018.
    """
    labels_SB = batch.labels_DB[:num_sources]
    loss_SB = F.cross_entropy(
        outputs.fused_logits_DBC[:num_sources].flatten(0, 1), labels_SB.flatten(), ignore_index=-1, reduction="none"
    ).view(labels_SB.shape)
    sums_2S = collective.sum_(torch.stack([loss_SB.sum(1), (labels_SB >= 0).sum(1).to(loss_SB.dtype)]))
    mean_S = sums_2S[0] / sums_2S[1].clamp_min(1)
    weight_D = torch.ones(batch.num_domains, dtype=mean_S.dtype, device=mean_S.device)
    weight_D[:num_sources] = num_sources * mean_S.softmax(0)
    return weight_D
