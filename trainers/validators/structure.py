"""Validators that look at how predictions or features lie to each other."""

from __future__ import annotations

import numpy as np

SND_TEMPERATURE = 0.05
NEIGHBOURS = 10
_BLOCK = 512


def snd(target_probs_NC: np.ndarray) -> float:
    """Soft neighbourhood density: mean entropy of softmax_j(⟨p̂_i, p̂_j⟩ / T), j ≠ i, p̂ = p/‖p‖₂, T = 0.05; in nats.

    High when many rows share a dense neighbourhood. It does not see a collapse on one class, which has the highest value.

    Source: Saito et al., "Tune it the Right Way", ICCV 2021, arXiv:2108.10860.
    """
    unit_NC = target_probs_NC.astype(np.float64)
    unit_NC = unit_NC / np.linalg.norm(unit_NC, axis=1, keepdims=True)
    rows = np.arange(len(unit_NC))
    total = 0.0
    for start in range(0, len(rows), _BLOCK):  # N² similarities would not fit at once
        block = rows[start : start + _BLOCK]
        similar_BN = unit_NC[block] @ unit_NC.T / SND_TEMPERATURE
        similar_BN[np.arange(len(block)), block] = -np.inf
        weight_BN = np.exp(similar_BN - similar_BN.max(1, keepdims=True))
        weight_BN /= weight_BN.sum(1, keepdims=True)
        total -= (weight_BN * np.log(weight_BN, out=np.zeros_like(weight_BN), where=weight_BN > 0)).sum()
    return float(total / len(rows))


def class_ami(target_probs_NC: np.ndarray, target_features_NK: np.ndarray) -> float:
    """Adjusted mutual information of predicted classes and the k-means clusters of the features, k = C; about 0 to 1.

    Source: Musgrave et al., arXiv:2208.07360.

    Args:
        target_features_NK: features before the classifier; their length does not count.
    """
    # Here, because scikit-learn takes a second to import and every worker of every run imports this file.
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    length_N1 = np.linalg.norm(target_features_NK, axis=1, keepdims=True)
    unit_NK = target_features_NK / np.maximum(length_N1, 1e-12)
    clusters = KMeans(target_probs_NC.shape[1], n_init=1, random_state=0).fit_predict(unit_NK)
    return float(adjusted_mutual_info_score(clusters, target_probs_NC.argmax(1)))


def neighbour_consistency(label_N: np.ndarray, features_NK: np.ndarray) -> float:
    """How much more often a record's nearest by angle have its label than records at large; 0 by chance, 1 always.

    The features are of encoders that the labels did not change, so that labels of two models can be compared.
    """
    unit_NK = features_NK / np.maximum(np.linalg.norm(features_NK, axis=1, keepdims=True), 1e-12)
    most = min(NEIGHBOURS, len(unit_NK) - 1)
    if most < 1:
        return 0.0
    same = []
    for start in range(0, len(unit_NK), _BLOCK):  # N² similarities would not fit at once
        similar_BN = unit_NK[start : start + _BLOCK] @ unit_NK.T
        own_B = np.arange(len(similar_BN))
        similar_BN[own_B, start + own_B] = -np.inf
        nearest_BM = np.argpartition(-similar_BN, most - 1, axis=1)[:, :most]
        same.append((label_N[nearest_BM] == label_N[start : start + _BLOCK, None]).mean(1))
    by_chance = np.square(np.bincount(label_N) / len(label_N)).sum()
    return float((np.concatenate(same).mean() - by_chance) / max(1 - by_chance, 1e-12))
