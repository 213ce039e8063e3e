"""Class shares of the target, estimated with the floor: where sources agree, and never else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.m2can.floor import estimate_shares
from trainers.m2can.floor.shares import most_likely_shares

CENTRES = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
EQUAL, FEW = [1 / 3] * 3, [0.7, 0.2, 0.1]


def domain(seed: int, shares: list[float], moved: float = 0.0, rows: int = 300) -> tuple[dict[str, Tensor], Tensor]:
    """Texts and pictures of three classes around their centres, all moved and stretched as the domain is."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), np.round(np.array(shares) * rows).astype(int))
    stretch = draw.uniform(0.5, 2, 3)
    features = {
        name: torch.from_numpy((CENTRES[labels] + draw.normal(size=(len(labels), 3)) + moved) * stretch)
        for name in ("text", "picture")
    }
    return features, torch.from_numpy(labels)


@pytest.mark.parametrize("moved", [0.0, 4.0])
def test_shares_that_differ_are_found_though_the_domain_differs(moved: float) -> None:
    sources = [domain(1, EQUAL), domain(2, [0.3, 0.3, 0.4], 2.0)]
    target, labels = domain(3, FEW, moved)
    found = estimate_shares(sources, target, 3)
    assert found is not None and found.sum() == pytest.approx(1)
    assert (found - labels.bincount() / len(labels)).abs().sum() < 0.08
    again = estimate_shares(sources, target, 3)
    assert again is not None and torch.equal(found, again)


def test_equal_shares_stay_equal() -> None:
    assert estimate_shares([domain(1, EQUAL), domain(2, [0.5, 0.25, 0.25])], domain(3, EQUAL, 1.0)[0], 3) is None


def test_a_single_source_has_no_second_opinion() -> None:
    assert estimate_shares([domain(1, EQUAL)], domain(3, FEW)[0], 3) is None


def test_sources_that_differ_on_the_target_are_not_followed() -> None:
    """For the second source two classes look the other way round."""
    features, labels = domain(2, EQUAL)
    other = features, torch.tensor([1, 0, 2])[labels]
    assert estimate_shares([domain(1, EQUAL), other], domain(3, FEW)[0], 3) is None


def test_sources_that_know_nothing_of_each_other_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features without a class in them: whatever the sources say of the target, and however alike, is chance."""
    draw = np.random.default_rng(5)
    noise = [
        ({name: torch.from_numpy(draw.normal(size=(300, 4))) for name in ("text", "picture")}, torch.arange(300) % 3)
        for _ in range(3)
    ]
    monkeypatch.setattr("trainers.m2can.floor.shares.SAME", 2.0)
    monkeypatch.setattr("trainers.m2can.floor.shares.DIFFERENT", 0.0)
    assert estimate_shares(noise[:2], noise[2][0], 3) is None
    monkeypatch.setattr("trainers.m2can.floor.shares.KNOWING", -1.0)
    assert estimate_shares(noise[:2], noise[2][0], 3) is not None


def test_the_likelihood_of_exact_predictions_gives_the_shares_of_a_draw() -> None:
    draw, before, shares = np.random.default_rng(0), torch.tensor([0.5, 0.5]).double(), [0.9, 0.1]
    x = torch.from_numpy(draw.normal(np.where(draw.random(4000) < shares[1], 1.5, -1.5)))
    logits = torch.stack([-((x + 1.5) ** 2) / 2, -((x - 1.5) ** 2) / 2], 1)
    assert most_likely_shares(logits.softmax(1), before).tolist() == pytest.approx(shares, abs=0.01)
