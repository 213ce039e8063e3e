"""The class shares of the target, estimated from calibrated predictions."""

from __future__ import annotations

import numpy as np
import torch

from trainers.m2can.floor.shares import most_likely_shares

_TEMPERATURES = np.geomspace(0.1, 10, 81)


def find_temperature(probs_MC: np.ndarray, labels_M: np.ndarray) -> float:
    """T of the smallest negative log-likelihood of softmax(log p / T), from 0.1 to 10; 1 where there is no sample.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    """
    if not len(labels_M):
        return 1.0
    rows = np.arange(len(labels_M))
    losses = [-np.log(sharpen(probs_MC, t)[rows, labels_M]).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def sharpen(probs_NC: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T), float64 [N, C]."""
    logits_NC = np.log(probs_NC.astype(np.float64).clip(1e-12)) / temperature
    logits_NC -= logits_NC.max(1, keepdims=True)
    return (np.exp(logits_NC) / np.exp(logits_NC).sum(1, keepdims=True)).clip(1e-12)


def estimate_prior(probs_NC: np.ndarray, source_prior_C: np.ndarray) -> np.ndarray:
    """The target's class shares, [C], as trainers.m2can.floor.shares.most_likely_shares finds them."""
    shares_C = most_likely_shares(torch.from_numpy(probs_NC.astype(np.float64)), torch.from_numpy(source_prior_C))
    found: np.ndarray = shares_C.numpy()
    return found
