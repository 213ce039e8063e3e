"""Refinement of pseudo labels against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.neighbourhood import TargetView, balance, by_centroids, refine, smooth


def clusters(rows: int = 60, wrong: float = 0.2) -> tuple[TargetView, np.ndarray]:
    """Three classes; texts and pictures lie in clusters, some predictions are wrong."""
    rng = np.random.default_rng(0)
    true = np.arange(rows) % 3
    shown = np.where(rng.random(rows) < wrong, (true + 1) % 3, true)

    def near(width: int) -> Tensor:
        return torch.from_numpy(4 * np.eye(3, width)[true] + rng.normal(0, 0.5, (rows, width))).float()

    probs = torch.from_numpy(0.8 * np.eye(3)[shown] + 0.2 / 3).float()
    return TargetView(probs, probs, probs.roll(0), near(8), near(8), near(8)), true


def cosines(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def naive_smooth(values: Tensor, features: Tensor, k: int) -> np.ndarray:
    similar = cosines(features)
    return np.stack([values.double().numpy()[np.argsort(-row)[:k]].mean(0) for row in similar])


@pytest.mark.parametrize("neighbours", [1, 4, 200])
def test_smooth(neighbours: int) -> None:
    view, _ = clusters()
    found = smooth(view.probs_NC, view.fused_NK, neighbours)
    assert found.numpy() == pytest.approx(naive_smooth(view.probs_NC, view.fused_NK, neighbours), abs=1e-6)
    if neighbours == 1:
        assert torch.equal(found, view.probs_NC)  # each row's nearest is the row itself


def test_more_rows_than_a_block() -> None:
    rng = torch.Generator().manual_seed(0)
    values, features = torch.rand(1100, 2, generator=rng), torch.randn(1100, 5, generator=rng)
    assert smooth(values, features, 3).numpy() == pytest.approx(naive_smooth(values, features, 3), abs=1e-6)


@pytest.mark.parametrize("kind", ["fused", "modalities", "cross", "centroids"])
def test_refinement_puts_wrong_labels_right(kind: str) -> None:
    view, true = clusters()
    before = (view.probs_NC.argmax(1).numpy() == true).mean()
    found = refine(kind, view, 9)
    assert before < 0.85
    assert (found.argmax(1).numpy() == true).mean() > 0.95
    assert found.sum(1).numpy() == pytest.approx(1, abs=1e-5)


def test_each_modality_asks_the_other_ones_neighbours() -> None:
    view, _ = clusters()
    view = TargetView(
        view.probs_NC, view.text_probs_NC, 1 - view.probs_NC, view.fused_NK, view.text_NK, view.picture_NK
    )
    wanted = naive_smooth(view.text_probs_NC, view.picture_NK, 3) + naive_smooth(view.picture_probs_NC, view.text_NK, 3)
    assert refine("cross", view, 3).numpy() == pytest.approx(wanted / 2, abs=1e-6)
    both = naive_smooth(view.probs_NC, view.text_NK, 3) + naive_smooth(view.probs_NC, view.picture_NK, 3)
    assert refine("modalities", view, 3).numpy() == pytest.approx(both / 2, abs=1e-6)
    assert refine("none", view, 3) is view.probs_NC


def test_centroids() -> None:
    view, _ = clusters(12)
    p = view.probs_NC.double().numpy()
    f = view.fused_NK.double().numpy()
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    for _ in range(2):
        c = np.stack([sum(p[i, k] * f[i] for i in range(12)) for k in range(3)])
        c = c / np.linalg.norm(c, axis=1, keepdims=True)
        e = np.exp(f @ c.T / 0.1)
        p = e / e.sum(1, keepdims=True)
    assert by_centroids(view.probs_NC, view.fused_NK).numpy() == pytest.approx(p, abs=1e-5)


def test_balance_brings_the_prior_about() -> None:
    rng = torch.Generator().manual_seed(1)
    probs = (2 * torch.randn(200, 3, generator=rng) + torch.tensor([2.0, 0.0, 0.0])).softmax(1)
    prior = torch.tensor([0.2, 0.3, 0.5])
    found = balance(probs, prior)
    assert found.mean(0).numpy() == pytest.approx(prior.numpy(), abs=1e-4)
    assert found.sum(1).numpy() == pytest.approx(1, abs=1e-6)
    # Odds of two classes change by the same factor for all samples: that is the nearest such distribution.
    factor = (found[:, 0] / found[:, 1]) / (probs[:, 0] / probs[:, 1])
    assert factor.numpy() == pytest.approx(float(factor[0]), rel=1e-3)
    assert balance(found, found.mean(0)).numpy() == pytest.approx(found.numpy(), abs=1e-5)
