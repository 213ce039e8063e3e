"""Pseudo labels refined by the target's own structure, after every target sample was scored.

Legend: N target samples, C classes, K features, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Refinement = Literal["none", "fused", "modalities", "cross", "centroids"]

_BLOCK = 1024


@dataclass(frozen=True)
class TargetView:
    """What the network says of every target sample on the weak views.

    probs_NC: softmax of the fused logits. text_probs_NC, picture_probs_NC: of the single-modality heads.
    fused_NK, text_NK, picture_NK: features.
    """

    probs_NC: Tensor
    text_probs_NC: Tensor
    picture_probs_NC: Tensor
    fused_NK: Tensor
    text_NK: Tensor
    picture_NK: Tensor


def refine(kind: Refinement, view: TargetView, neighbours: int) -> Tensor:
    """Refined class probabilities [N, C].

    - `fused`: mean of the fused predictions over the k nearest in the fused features.
    - `modalities`: the same in the text and in the picture features, and the mean of both.
    - `cross`: the text head's predictions averaged over neighbours in the picture features, the picture head's over
      neighbours in the text features, and the mean of both: an error of one modality is not repeated by its own neighbours.
    - `centroids`: the class whose centroid is nearest (see `by_centroids`).
    """
    if kind == "fused":
        return smooth(view.probs_NC, view.fused_NK, neighbours)
    if kind == "modalities":
        by_text = smooth(view.probs_NC, view.text_NK, neighbours)
        return (by_text + smooth(view.probs_NC, view.picture_NK, neighbours)) / 2
    if kind == "cross":
        by_picture = smooth(view.text_probs_NC, view.picture_NK, neighbours)
        return (by_picture + smooth(view.picture_probs_NC, view.text_NK, neighbours)) / 2
    if kind == "centroids":
        return by_centroids(view.probs_NC, view.fused_NK)
    return view.probs_NC


def smooth(values_NC: Tensor, features_NK: Tensor, neighbours: int) -> Tensor:
    """Mean of the values of each row's k nearest rows by cosine, the row itself among them.

    Source: Yang et al., "Exploiting the Intrinsic Neighborhood Structure for Source-free Domain Adaptation" (NRC),
    NeurIPS 2021, arXiv:2110.04202; Chen et al., "Contrastive Test-Time Adaptation" (AdaContrast), CVPR 2022.

    Args:
        neighbours: k ≥ 1; at most N are taken.
    """
    unit_NK = F.normalize(features_NK, dim=-1)
    most = min(neighbours, len(unit_NK))
    # N² similarities would not fit at once.
    nearest = [(block @ unit_NK.T).topk(most, -1).indices for block in unit_NK.split(_BLOCK)]
    return values_NC[torch.cat(nearest)].mean(1) if nearest else values_NC


def by_centroids(probs_NC: Tensor, features_NK: Tensor, temperature: float = 0.1, rounds: int = 2) -> Tensor:
    """softmax of the cosines to the class centroids over T; centroids weighed by the probabilities, then by the result.

    Source: Liang et al., "Do We Really Need to Access the Source Data?" (SHOT), ICML 2020, arXiv:2002.08546.
    """
    unit_NK = F.normalize(features_NK, dim=-1)
    for _ in range(rounds):
        centroids_CK = F.normalize(probs_NC.T @ unit_NK, dim=-1)
        probs_NC = (unit_NK @ centroids_CK.T / temperature).softmax(-1)
    return probs_NC


def balance(probs_NC: Tensor, prior_C: Tensor, iterations: int = 100) -> Tensor:
    """The nearest distributions (in KL) whose mean over the samples is `prior_C`, by Sinkhorn's iterations, [N, C].

    Source: Cuturi, NeurIPS 2013; for pseudo labels: Asano et al., ICLR 2020, arXiv:1911.05371.
    """
    probs_NC = probs_NC.clamp_min(1e-12)
    for _ in range(iterations):
        probs_NC = probs_NC * (prior_C / probs_NC.mean(0))
        probs_NC = probs_NC / probs_NC.sum(1, keepdim=True)
    return probs_NC
