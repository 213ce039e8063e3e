"""UACR: scores, quotas and priors against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainers.m2can.pseudo_labels import score_samples, select, selection_rate, uniform_prior


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_score(heads: int) -> None:
    torch.manual_seed(heads)
    logits = torch.randn(heads, 9, 3, dtype=torch.float64)
    found = score_samples(logits)
    for n in range(9):
        p = [torch.softmax(logits[h, n], 0).tolist() for h in range(heads)]
        kl = [
            sum(p[i][c] * math.log(p[i][c] / p[j][c]) for c in range(3))
            for i in range(heads)
            for j in range(heads)
            if i != j
        ]
        variance = 0.0 if heads == 1 else sum(kl) if heads == 2 else 2 * sum(kl) / len(kl)
        mean = torch.softmax(sum(logits[h, n] for h in range(heads)) / heads, 0)
        assert int(found.label[n]) == int(mean.argmax())
        assert float(found.prob[n]) == pytest.approx(float(mean.max()), rel=1e-12)
        assert float(found.variance[n]) == pytest.approx(variance, rel=1e-9, abs=1e-12)
        assert float(found.score[n]) == pytest.approx(float(mean.max()) * math.exp(-variance), rel=1e-9)


def test_heads_that_agree_have_no_variance() -> None:
    logits = torch.randn(1, 50, 4).expand(3, 50, 4)
    found = score_samples(logits)
    assert float(found.variance.min()) >= 0
    assert float(found.variance.max()) < 1e-5


def naive_select(label: np.ndarray, score: np.ndarray, quotas: list[int]) -> list[int]:
    kept: list[int] = []
    for c, quota in enumerate(quotas):
        rows = sorted((row for row in range(len(label)) if label[row] == c), key=lambda row: (-score[row], row))
        kept += rows[:quota]
    return sorted(kept)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_select_keeps_the_published_quota_of_each_class(classes: int, rate: float) -> None:
    rng = np.random.default_rng(classes)
    label, score = rng.integers(classes, size=101), rng.integers(7, size=101) / 7  # many ties
    quota = math.floor(rate * 101 / classes)
    assert select(label, score, rate, uniform_prior(classes)).tolist() == naive_select(label, score, [quota] * classes)


def test_select_by_a_given_prior() -> None:
    label, score = np.repeat([0, 1, 2], 40), np.random.default_rng(0).random(120)
    kept = select(label, score, 0.5, np.array([0.5, 0.4, 0.1]))
    assert kept.tolist() == naive_select(label, score, [30, 24, 6])


def test_a_threshold_beside_the_rate() -> None:
    label, score = np.zeros(10, int), np.arange(10) / 10
    assert select(label, score, 0.5, np.array([1.0]), threshold=0.7).tolist() == [7, 8, 9]
    assert select(label, score, 0.2, np.array([1.0]), threshold=0.7).tolist() == [8, 9]


def test_a_threshold_empties_no_class() -> None:
    """A tenth of a class's quota stays: its best."""
    label, score = (
        np.repeat([0, 1, 2], 40),
        np.concatenate([np.full(40, 0.9), np.linspace(0, 0.4, 40), np.full(40, 0.9)]),
    )
    kept = select(label, score, 1.0, uniform_prior(3), threshold=0.8)
    assert np.bincount(label[kept]).tolist() == [40, 4, 40]
    assert kept[label[kept] == 1].tolist() == [76, 77, 78, 79]


def test_ties_go_to_the_lower_row() -> None:
    assert select(np.zeros(6, int), np.full(6, 0.5), 0.5, np.array([1.0])).tolist() == [0, 1, 2]


def test_a_class_that_nobody_was_given() -> None:
    kept = select(np.zeros(10, int), np.arange(10.0), 0.6, uniform_prior(3))
    assert kept.tolist() == [8, 9]
    assert select(np.zeros(0, int), np.zeros(0), 1.0, uniform_prior(3)).tolist() == []


@pytest.mark.parametrize("total", [10, 30, 100, 3388, 15000])
def test_quota_is_not_lost_to_rounding(total: int) -> None:
    """0.3·N/C as the exact fraction says, not as 0.1 + 0.2 does."""
    label = np.zeros(total, int)
    for tenths in range(11):
        rate = selection_rate(tenths, 0.0, 0.1)
        for classes in (2, 3, 7):
            assert len(select(label, label * 1.0, rate, uniform_prior(classes))) == tenths * total // (10 * classes)


def test_selection_rate() -> None:
    assert [selection_rate(epoch, 0.3, 0.3) for epoch in range(5)] == pytest.approx([0.3, 0.6, 0.9, 1.0, 1.0])


@pytest.mark.parametrize("seed", range(20))
def test_selection_is_that_of_a_full_sort(seed: int) -> None:
    generator = np.random.default_rng(seed)
    number = int(generator.integers(1, 400))
    labels = generator.integers(0, 4, number)
    scores = generator.integers(0, 12, number).astype(np.float32) / 12  # many ties
    scores[generator.random(number) < 0.05] = np.nan
    prior, rate = generator.dirichlet(np.ones(4)), float(generator.random())
    wanted = []
    for c in range(4):
        rows = np.flatnonzero(labels == c)
        order = np.argsort(-scores[rows], kind="stable")
        best = rows[order[: int(np.floor(rate * number * prior[c] + 1e-9))]]
        wanted.append(best[scores[best] >= 0])  # what is not a number is never kept
    before = scores.copy()
    np.testing.assert_array_equal(select(labels, scores, rate, prior), np.sort(np.concatenate(wanted)))
    np.testing.assert_array_equal(scores, before)
