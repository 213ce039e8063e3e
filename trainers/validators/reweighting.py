"""Validators that weigh the sources' validation rows by how much they look like the target."""

from __future__ import annotations

import numpy as np


def density_ratio(source_features_MK: np.ndarray, target_features_NK: np.ndarray) -> np.ndarray:
    """w = (M/N) · P(target | x) / P(source | x) of each source row by a logistic discriminator, [M].

    Source: Bickel, Brückner and Scheffer, ICML 2007; You et al. 2019.
    """
    # Here, because scikit-learn takes a second to import and every worker of every run imports this file.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([source_features_MK, target_features_NK])
    is_target = np.arange(len(features)) >= len(source_features_MK)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    odds_M = model.fit(features, is_target).decision_function(source_features_MK)
    return np.exp(odds_M.clip(-30, 30)) * len(source_features_MK) / len(target_features_NK)


def dev(weights_M: np.ndarray, losses_M: np.ndarray) -> float:
    """−risk of deep embedded validation: risk = mean(w·ℓ) + η·mean(w) − η, η = −cov(w·ℓ, w)/var(w).

    η is the control variate that uses mean(w) = 1. With weights that are all equal there is nothing to control (η = 0).

    Source: You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019.

    Args:
        weights_M: density ratios of the sources' validation rows.
        losses_M: their losses.
    """
    if not len(weights_M):
        return float("nan")
    weighted_M = weights_M * losses_M
    covariance = np.cov(weighted_M, weights_M, ddof=1) if len(weights_M) > 1 else np.zeros((2, 2))
    eta = -covariance[0, 1] / covariance[1, 1] if covariance[1, 1] > 0 else 0.0
    return -float(weighted_M.mean() + eta * weights_M.mean() - eta)


def devn(weights_M: np.ndarray, losses_M: np.ndarray) -> float:
    """DEV with the weights divided by their maximum, which tames single huge density ratios.

    Source: Musgrave et al., arXiv:2208.07360.
    """
    return dev(weights_M / weights_M.max(), losses_M) if len(weights_M) else float("nan")
