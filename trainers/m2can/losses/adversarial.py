"""CDAFA: cross-domain adversarial feature alignment, one conditional discriminator for each pair of domains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.losses.inputs import TermInputs


def term(inputs: TermInputs) -> Tensor:
    assert inputs.discriminators is not None
    return adversarial(inputs.outputs, inputs.batch, inputs.discriminators, inputs.smoothing, inputs.weight_D)


def adversarial(
    outputs: Outputs,
    batch: Batch,
    discriminators: Discriminators,
    smoothing: float,
    weight_D: Tensor | None = None,
) -> Tensor:
    """Mean over the pairs that take part of the pair's binary cross-entropy; domain a wants 1−ε, domain b wants ε.

    The discriminators see weak × weak (Discriminators.view).

    Source: Zhao et al. 2025; the smoothed task term of Rangwani et al. (SDAT), ICML 2022.

    Args:
        smoothing: ε, 0 to 1.
        weight_D: of a pair with the target by its source; None: 1.

    Returns:
        scalar, this worker's share; zero when fewer than two domains take part.
    """
    seen_DBK = discriminators.view(outputs)
    present = [(j, pair) for j, pair in enumerate(discriminators.pairs) if max(pair) < batch.num_domains]
    loss = seen_DBK.new_zeros(())
    for j, (a, b) in present:
        first_BK = seen_DBK[:b].flatten(0, 1) if discriminators.merged else seen_DBK[a]
        logits_B = discriminators[j](torch.cat([first_BK, seen_DBK[b]]))
        wanted_B = torch.full_like(logits_B, smoothing)
        wanted_B[: len(first_BK)] = 1 - smoothing
        share_B = torch.ones_like(logits_B)
        share_B[: len(first_BK)] = batch.size / len(first_BK)  # both sides count alike
        pair = F.binary_cross_entropy_with_logits(logits_B, wanted_B, share_B, reduction="sum")
        weigh = weight_D is not None and b == discriminators.target and not discriminators.merged
        loss = loss + (pair * weight_D[a] if weigh and weight_D is not None else pair)
    return loss / (2 * batch.global_batch * max(len(present), 1))
