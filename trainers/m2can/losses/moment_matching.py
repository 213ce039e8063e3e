"""Moment matching: the first moments of all domains' features are drawn together."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.losses.inputs import TermInputs

ORDERS = (1, 2)


def term(inputs: TermInputs) -> Tensor:
    return moment_distance(inputs.outputs, inputs.batch, inputs.collective)


def moment_distance(outputs: Outputs, batch: Batch, collective: Collective) -> Tensor:
    r"""Σ_{k=1,2} mean over all pairs of domains of ‖E[f_a^k] − E[f_b^k]‖₂, powers by element, f of weak × weak.

    Source: Peng et al., "Moment Matching for Multi-Source Domain Adaptation" (M3SDA), ICCV 2019, arXiv:1812.01754.

    Returns:
        scalar, this worker's share (zero for a single domain).
    """
    sums_MDK = torch.stack([outputs.fused_DBK.pow(order).sum(1) for order in ORDERS])
    means_MDK = collective.sum(sums_MDK) / batch.global_batch
    pairs = list(combinations(range(batch.num_domains), 2))
    if not pairs:
        return 0 * means_MDK.sum()
    differences_MPK = torch.stack([means_MDK[:, a] - means_MDK[:, b] for a, b in pairs], 1)
    distance_MP = differences_MPK.square().sum(-1).add(1e-12).sqrt()
    return distance_MP.mean(1).sum() / collective.world_size
