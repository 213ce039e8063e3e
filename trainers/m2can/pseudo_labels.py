"""UACR: uncertainty-aware classifier refinement. Scores, schedules, class priors and selection of pseudo labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

LEAST_SELECTED = 0.1  # of a class's quota, whatever the threshold: no class with predictions stays empty


@dataclass(frozen=True)
class Scores:
    """Label, score, probability and variance of each target sample, [N]."""

    label: Tensor
    score: Tensor
    prob: Tensor
    variance: Tensor


def score_samples(logits_HNC: Tensor) -> Scores:
    r"""score = prob × exp(−variance).

    label and prob: argmax and maximum of the softmax of the heads' mean logits. variance: Σ over ordered pairs of heads
    KL(p_i ‖ p_j) for two heads; 2 × the mean over ordered pairs for more; 0 for one.

    Source: Zhao et al. 2025.

    Args:
        logits_HNC: each head's logits on the weak views, in eval mode.
    """
    heads = logits_HNC.shape[0]
    log_probs_HNC = F.log_softmax(logits_HNC, -1)
    probs_HNC = log_probs_HNC.exp()
    variance_N = probs_HNC.new_zeros(logits_HNC.shape[1])
    if heads > 1:
        # Σ_{i≠j} KL(p_i‖p_j) = H·Σ_i ⟨p_i, log p_i⟩ − ⟨Σ_i p_i, Σ_j log p_j⟩: linear in the number of heads.
        own_N = (probs_HNC * log_probs_HNC).sum((0, 2)) * heads
        cross_N = (probs_HNC.sum(0) * log_probs_HNC.sum(0)).sum(-1)
        variance_N = (own_N - cross_N).clamp_min(0) * (2 / (heads * (heads - 1)))
    prob_N, label_N = logits_HNC.mean(0).softmax(-1).max(-1)
    return Scores(label_N, prob_N * (-variance_N).exp(), prob_N, variance_N)


def selection_rate(epoch: int, start: float, update: float) -> float:
    """Part of the target that is selected after `epoch` (0-based): min(start + epoch·update, 1)."""
    return min(start + epoch * update, 1.0)


def select(
    label_N: np.ndarray, score_N: np.ndarray, rate: float, prior_C: np.ndarray, threshold: float = 0.0
) -> np.ndarray:
    """Keep, of each predicted class c, the floor(rate·N·prior_c) highest scores, its quota.

    With the uniform prior 1/C and no threshold this is the published rule. A pure function: ties go to the lower row.

    Args:
        label_N: predicted classes.
        score_N: higher is surer.
        rate: 0 to 1.
        prior_C: the classes' shares of the target, summing to 1.
        threshold: rows with a lower score are left out, but for the best LEAST_SELECTED of a class's quota.

    Returns:
        row numbers selected, ascending.
    """
    selected_N = np.zeros(len(label_N), bool)
    for c, prior in enumerate(prior_C):
        rows = np.flatnonzero(label_N == c)
        # The tiny slack keeps a product like 0.3·100/3·… from losing a row to rounding.
        quota = min(int(np.floor(rate * len(label_N) * prior + 1e-9)), len(rows))
        if quota == 0:
            continue
        # What is not a number comes last. A partition finds the last score that is kept, without sorting the others.
        below = np.nan_to_num(-score_N[rows], copy=False, nan=np.inf, posinf=np.inf, neginf=-np.inf)
        best = rows[_smallest(below, quota)]
        sure = best[score_N[best] >= threshold]
        least = math.ceil(LEAST_SELECTED * quota)
        selected_N[sure if len(sure) >= least else rows[_smallest(below, least)]] = True
    return np.flatnonzero(selected_N)


def _smallest(values_N: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` ≥ 1 smallest values; ties go to the lower place."""
    last = np.partition(values_N, count - 1)[count - 1]
    smaller, equal = np.flatnonzero(values_N < last), np.flatnonzero(values_N == last)
    return np.concatenate([smaller, equal[: count - len(smaller)]])


def uniform_prior(num_classes: int) -> np.ndarray:
    return np.full(num_classes, 1 / num_classes)
