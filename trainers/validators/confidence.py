"""Validators that read predicted distributions alone."""

from __future__ import annotations

import numpy as np


def source_accuracy(source_probs_MC: np.ndarray, source_labels_M: np.ndarray) -> float:
    """Share of the sources' validation rows that are predicted right; not a number where there is none."""
    if not len(source_labels_M):
        return float("nan")
    return float((source_probs_MC.argmax(1) == source_labels_M).mean())


def entropy(probs_C: np.ndarray) -> float:
    """Entropy of one distribution, nats."""
    positive = probs_C[probs_C > 0]
    return float(-(positive * np.log(positive)).sum())


def negative_entropy(target_probs_NC: np.ndarray) -> float:
    """−mean H(p), in nats: how sure the predictions are. A collapse on one class has the highest value, 0.

    Source: Morerio, Cavazza and Murino, "Minimal-Entropy Correlation Alignment", ICLR 2018, arXiv:1711.10288.
    """
    return -float(np.mean([entropy(probs_C) for probs_C in target_probs_NC]))


def infomax(target_probs_NC: np.ndarray) -> float:
    """Information maximisation: H(mean p) − mean H(p), in nats.

    High when single predictions are sure and together cover the classes.

    Source: Bridle et al., NeurIPS 1991; Shi and Sha, ICML 2012, arXiv:1206.6438.
    """
    return entropy(target_probs_NC.mean(0)) + negative_entropy(target_probs_NC)


def corr_c(target_probs_NC: np.ndarray) -> float:
    """Cosine of the class correlation matrix PᵀP and the identity: tr(PᵀP) / (√C · ‖PᵀP‖_F), 1/√C to 1.

    1 for predictions that are sure and balanced; 1/√C for a collapse. Comparisons of validators also print it without √C
    and, in some code, with the smallest as the best; here it is read as in the source.

    Source: Tu et al., "Assessing Model Out-of-distribution Generalization with Softmax Prediction Probability Baselines
    and A Correlation Method", 2022.
    """
    correlation_CC = target_probs_NC.T @ target_probs_NC
    return float(correlation_CC.trace() / (np.sqrt(len(correlation_CC)) * np.linalg.norm(correlation_CC)))


def bnm(target_probs_NC: np.ndarray) -> float:
    """Nuclear norm ‖P‖_* (sum of singular values) over √(N·min(N, C)), its largest value: 0 to 1.

    Source: Cui et al., "Batch Nuclear-norm Maximization", CVPR 2020, arXiv:2003.12237; as a validator: Musgrave et al.,
    "Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain Adaptation", arXiv:2208.07360.
    """
    rows, classes = target_probs_NC.shape
    # The squares of the singular values are the eigenvalues of the small matrix PᵀP.
    squares = np.linalg.eigvalsh(target_probs_NC.T.astype(np.float64) @ target_probs_NC.astype(np.float64))
    return float(np.sqrt(squares.clip(min=0)).sum() / np.sqrt(rows * min(rows, classes)))
