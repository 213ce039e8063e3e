"""Adaptation without the sources: what moves, what it gains where the features are shifted, pseudo labels by centres."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.network import M2CAN
from trainers.m2can.source_free import adapt_network, nearest_centre, predicted
from trainers.validators.structure import neighbour_consistency

CLASSES, WIDTH = 3, 12


def domain(seed: int, shift: float, rows: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """Features of texts and of pictures, three classes of them along axes, all moved by `shift`; labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    move = shift * torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    parts = [
        3 * torch.eye(WIDTH)[labels + start] + torch.randn(rows, WIDTH, generator=draw) + move for start in (0, CLASSES)
    ]
    return parts[0], parts[1], labels


@pytest.fixture(scope="module")
def trained() -> M2CAN:
    """On a source alone."""
    torch.manual_seed(0)
    network = M2CAN(GivenFeatures(WIDTH), GivenFeatures(WIDTH), 1, CLASSES)
    text, picture, labels = domain(1, 0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(predicted(network, text, picture).fused_logits_DBC[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def accuracy(network: M2CAN, seed: int, shift: float) -> float:
    text, picture, labels = domain(seed, shift)
    with torch.no_grad():
        return float((predicted(network, text, picture).fused_logits_DBC[0].argmax(1) == labels).float().mean())


def test_a_shifted_target_is_predicted_better_and_heads_stay(trained: M2CAN) -> None:
    adapted = copy.deepcopy(trained)
    text, picture, _ = domain(2, 1.0)
    adapt_network(adapted, text, picture, seed=3)
    assert accuracy(trained, 2, 0.0) > 0.9
    assert accuracy(adapted, 4, 1.0) > accuracy(trained, 4, 1.0) + 0.05  # other records of that target
    before, after = trained.state_dict(), adapted.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"text_projection", "picture_projection", "fusion"}
    again = copy.deepcopy(trained)
    adapt_network(again, text, picture, seed=3)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in after.items())


def test_few_records_still_move(trained: M2CAN) -> None:
    adapted = copy.deepcopy(trained)
    text, picture, _ = domain(2, 1.0, rows=5)
    adapt_network(adapted, text, picture)
    assert not torch.equal(adapted.fusion.U.weight, trained.fusion.U.weight)
    assert all(x.isfinite().all() for x in adapted.state_dict().values())


def test_the_nearest_centre_corrects_what_is_far_from_its_own() -> None:
    features = torch.tensor([[5.0, 0.0], [5.1, 0.1], [4.9, 0.0], [0.0, 5.0], [0.1, 5.0], [0.0, 4.9]])
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8]])  # the third is wrong
    assert nearest_centre(probs, features).tolist() == [0, 0, 0, 1, 1, 1]
    alone = torch.full((4, 3), 0.01)
    alone[:, 1] = 0.98
    assert nearest_centre(alone, torch.ones(4, 2)).unique().numel() == 1  # nothing tells them apart, and nothing breaks


def test_neighbours_agree_by_labels_that_follow_the_features() -> None:
    text, _, labels = domain(5, 0.0)
    right, features = labels.numpy(), text.double().numpy()
    by_chance = np.random.default_rng(0).permutation(right)
    assert neighbour_consistency(right, features) > 0.3 > abs(neighbour_consistency(by_chance, features)) + 0.2
    assert neighbour_consistency(np.zeros(150, int), features) == 0  # all of one class says nothing
    many = np.tile(features, (5, 1))  # more than a block
    assert neighbour_consistency(np.tile(right, 5), many) > 0.4
    assert neighbour_consistency(np.array([1]), np.ones((1, 2))) == 0
