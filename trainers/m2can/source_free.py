"""Adaptation to a target without the sources: a trained network's classifier stays, what is before it moves.

Source: Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
Adaptation" (SHOT), ICML 2020, arXiv:2002.08546. The encoders stay, too: projections and fusion move, on features that are
computed once.

Legend: N record, K feature, C class, F fused feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.floor import Network
from trainers.m2can.network import M2CAN

EPOCHS = 10
RATE = 3e-4  # of Adam
PSEUDO_WEIGHT = 0.3  # of the cross-entropy of pseudo labels, as SHOT
# Of the entropy of the mean prediction. SHOT has 1, which presses classes towards equal shares: on the development sets 0.5
# costs a point where shares are equal and gains three where they are not.
DIVERSITY_WEIGHT = 0.5
BATCH = 64
LEAST_BATCH = 8  # records in which a mean prediction means something


def adapt_network(network: M2CAN, text_NK: Tensor, picture_NK: Tensor, *, seed: int = 0) -> None:
    """Move projections and fusion in place: sure predictions, all classes alike on the whole, and pseudo labels of the
    nearest class centre, anew in every epoch.

    Args:
        text_NK, picture_NK: the encoders' features of the target's records.
        seed: of their order.
    """
    modules = network.text_projection, network.picture_projection, network.fusion
    optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, len(text_NK))
    for _ in range(EPOCHS):
        with torch.no_grad():
            outputs = predicted(network, text_NK, picture_NK)
            probs_NC = outputs.fused_logits_DBC[0].softmax(1)
            pseudo_N = nearest_centre(probs_NC, outputs.fused_DBK[0])
        order = torch.randperm(len(text_NK), generator=generator).to(text_NK.device)
        for rows in order.split(size):
            if len(rows) < min(LEAST_BATCH, size):
                continue
            logits = predicted(network, text_NK[rows], picture_NK[rows]).fused_logits_DBC[0]
            probs = logits.softmax(1)
            unsure, diverse = torch.special.entr(probs).sum(1).mean(), torch.special.entr(probs.mean(0)).sum()
            loss = unsure - DIVERSITY_WEIGHT * diverse + PSEUDO_WEIGHT * F.cross_entropy(logits, pseudo_N[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def predicted(network: Network, text_NK: Tensor, picture_NK: Tensor) -> Outputs:
    """Of features, as one batch of one view and one domain."""
    labels = torch.full((1, len(text_NK)), -1, device=text_NK.device)
    return network(
        Batch(text_NK, None, picture_NK, None, labels_DB=labels, num_views=1, global_batch=len(text_NK))
    ).single()


def nearest_centre(probs_NC: Tensor, fused_NF: Tensor) -> Tensor:
    """Class of the nearest centre by angle, [N]: centres weighted by the predictions, then those of the classes so found."""
    x_NF = F.normalize(F.pad(fused_NF, (0, 1), value=1.0), dim=1)
    weight_NC = probs_NC
    for _ in range(2):
        label_N = (x_NF @ F.normalize(weight_NC.T @ x_NF, dim=1).T).argmax(1)
        found_NC = F.one_hot(label_N, probs_NC.shape[1]).to(probs_NC)
        weight_NC = torch.where(found_NC.sum(0) > 0, found_NC, probs_NC)  # a class that vanished keeps its first centre
    return label_N
