"""The floor of linear probes, on generated features whose domains are moved, stretched and of unequal worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.m2can.floor.fit import DECAY, FOLDS, fit_floor, fit_probe, prior_shift

CLASSES = 3
Domain = tuple[dict[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def domains() -> list[Domain]:
    """Two sources and a target: texts tell the class, pictures are noise; each domain has its own mean and scale."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 20, generator=draw)
    found = []
    for _ in range(3):
        labels = torch.arange(300) % CLASSES
        text = centres[labels] + torch.randn(300, 20, generator=draw)
        moved = text * torch.rand(20, generator=draw).add(0.5) + 20 * torch.randn(20, generator=draw)
        found.append(({"text": moved, "picture": torch.randn(300, 10, generator=draw)}, labels))
    return found


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def test_a_moved_target_is_classified(domains: list[Domain]) -> None:
    *sources, (features, labels) = domains
    x = torch.cat([features["text"] for features, _ in sources]).double()
    y = torch.nn.functional.one_hot(torch.cat([labels for _, labels in sources]), CLASSES).double()
    weight, bias = fit_probe(x, y)
    plain = accuracy(features["text"].double() @ weight.T + bias, labels)
    for self_training in (False, True):
        floor = fit_floor(sources, features, CLASSES, self_training=self_training)
        assert accuracy(floor.logits(features), labels) > max(0.9, plain + 0.2)


def test_a_modality_that_is_noise_hardly_counts(domains: list[Domain]) -> None:
    *sources, (features, _) = domains
    floor = fit_floor(sources, features, CLASSES, self_training=False)
    assert floor.weight["picture"].norm() < 0.15 * floor.weight["text"].norm()


@pytest.mark.parametrize("shares", [[1, 1, 1], [6, 3, 1]])
@pytest.mark.parametrize("self_training", [False, True])
def test_the_mean_prediction_is_the_prior(domains: list[Domain], shares: list[int], self_training: bool) -> None:
    *sources, (features, _) = domains
    prior = torch.tensor(shares, dtype=torch.float32)
    floor = fit_floor(sources, features, CLASSES, prior=prior, self_training=self_training)
    mean = floor.logits(features).softmax(1).mean(0)
    assert mean.tolist() == pytest.approx((prior / prior.sum()).tolist(), abs=1e-6)


def test_shares_that_are_not_known_shift_half_as_far(domains: list[Domain]) -> None:
    *sources, (features, _) = domains
    text = features["text"][torch.cat([torch.arange(60), torch.arange(1, 300, CLASSES)])]  # most are of one class
    target = {"text": text, "picture": torch.zeros(len(text), 10)}
    biases = []
    for prior in (None, torch.ones(CLASSES)):
        floor = fit_floor(sources, target, CLASSES, prior=prior, self_training=False)
        biases.append(floor.bias)
    logits = floor.logits(target) - floor.bias
    start = 2 * biases[0] - biases[1]  # without a shift
    shift = prior_shift(logits + start, torch.ones(CLASSES).double().log() - torch.tensor(CLASSES).log())
    assert shift.abs().max() > 0.05
    assert torch.allclose(biases[1] - start - (biases[1] - start).mean(), shift - shift.mean(), atol=1e-4)


def test_a_single_source_gives_a_floor(domains: list[Domain]) -> None:
    source, _, (features, labels) = domains
    assert accuracy(fit_floor([source], features, CLASSES).logits(features), labels) > 0.9


def test_folds_of_a_single_source_have_all_classes() -> None:
    """Though its records come in turns of as many classes as there are folds."""
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(200) % FOLDS
    text = torch.randn(FOLDS, 12, generator=draw)[labels] + 0.5 * torch.randn(200, 12, generator=draw)
    floor = fit_floor([({"text": text}, labels)], {"text": text}, FOLDS, self_training=False)
    assert accuracy(floor.logits({"text": text}), labels) > 0.9
    assert floor.weight["text"].norm() > 0.5  # features that tell the class count


def test_the_same_features_give_the_same_floor(domains: list[Domain]) -> None:
    *sources, (features, _) = domains
    one, two = (fit_floor(sources, features, CLASSES) for _ in range(2))
    assert torch.equal(one.bias, two.bias)
    assert all(torch.equal(one.weight[name], two.weight[name]) for name in one.weight)


def test_a_feature_that_never_changes_does_no_harm(domains: list[Domain]) -> None:
    *sources, (features, labels) = [
        ({"text": torch.cat([x["text"], torch.ones(300, 1)], 1), "picture": x["picture"]}, y) for x, y in domains
    ]
    floor = fit_floor(sources, features, CLASSES)
    assert floor.logits(features).isfinite().all()
    assert accuracy(floor.logits(features), labels) > 0.9


def test_a_probe_is_at_its_minimum(domains: list[Domain]) -> None:
    """Its gradient by hand is zero."""
    features, labels = domains[0]
    x = features["picture"].double()
    y = torch.nn.functional.one_hot(labels, CLASSES).double()
    importance = torch.linspace(0.1, 1, len(x)).double()
    weight, bias = fit_probe(x, y, importance)
    wrong = ((x @ weight.T + bias).softmax(1) - y) * (importance / importance.sum())[:, None]
    assert torch.allclose(wrong.T @ x, -DECAY * weight, atol=1e-6)
    assert torch.allclose(wrong.sum(0), torch.zeros(CLASSES).double(), atol=1e-6)


def test_a_shift_is_found_for_lopsided_logits() -> None:
    logits = torch.randn(500, CLASSES, generator=torch.Generator().manual_seed(1)).double() + torch.tensor([8.0, 0, -8])
    log_prior = torch.tensor([0.2, 0.3, 0.5]).double().log()
    mean = (logits + prior_shift(logits, log_prior)).softmax(1).mean(0)
    assert mean.tolist() == pytest.approx([0.2, 0.3, 0.5], abs=1e-6)
