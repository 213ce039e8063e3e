"""How much each source counts in a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.names import SourceWeights


@torch.no_grad()
def source_weights(
    kind: SourceWeights, outputs: Outputs, batch: Batch, num_sources: int, collective: Collective
) -> Tensor | None:
    """Weights of the domains [D], the sources' summing to S, the target's 1; None for `uniform`, without gradient.

    `proximity`: S·softmax(−d_s / mean d), d_s the squared distance of the domain's mean text and picture features to the
    target's; 1 each while the target takes no part. `hardest`: S·softmax(cross-entropy of the source), the soft maximum
    over the sources.

    Source: `hardest`: Zhao et al., "Adversarial Multiple Source Domain Adaptation" (MDAN), NeurIPS 2018.
    """
    if kind == "uniform" or (kind == "proximity" and batch.num_domains == num_sources):
        return None
    if kind == "proximity":
        sums_DK = torch.cat([outputs.text_VDBK[0].sum(1), outputs.picture_VDBK[0].sum(1)], -1)
        means_DK = collective.sum_(sums_DK) / batch.global_batch
        distance_S = (means_DK[:num_sources] - means_DK[-1]).square().sum(-1)
        level_S = -distance_S / distance_S.mean().clamp_min(1e-12)
    else:
        labels_SB = batch.labels_DB[:num_sources]
        loss_SB = F.cross_entropy(
            outputs.fused_logits_DBC[:num_sources].flatten(0, 1), labels_SB.flatten(), ignore_index=-1, reduction="none"
        ).view(labels_SB.shape)
        sums_2S = collective.sum_(torch.stack([loss_SB.sum(1), (labels_SB >= 0).sum(1).to(loss_SB.dtype)]))
        level_S = sums_2S[0] / sums_2S[1].clamp_min(1)
    weight_D = torch.ones(batch.num_domains, dtype=level_S.dtype, device=level_S.device)
    weight_D[:num_sources] = num_sources * level_S.softmax(0)
    return weight_D
