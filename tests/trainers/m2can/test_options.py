"""Options beside the published method, against loops written from their definitions: values and gradients, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, log, softmax

from tests.trainers.m2can import made
from tests.trainers.m2can.test_losses import ONE, same
from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.losses.adversarial import adversarial
from trainers.m2can.losses.cross_prediction import cross_prediction
from trainers.m2can.losses.moment_matching import moment_distance
from trainers.m2can.names import Adversary
from trainers.m2can.network import M2CAN
from trainers.m2can.source_weights import hardest_sources

CLASSES = 3


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * log(p / q)).sum()


@pytest.mark.parametrize("domains", [1, 2, 3])
def test_moment_distance(domains: int) -> None:
    o = made.outputs(domains)
    total = 0 * o.fused_DBK.sum()
    pairs = list(combinations(range(domains), 2))
    for order, (a, b) in product((1, 2), pairs):
        means = [sum(o.fused_DBK[d, i] ** order for i in range(5)) / 5 for d in (a, b)]
        total = total + torch.linalg.vector_norm(means[0] - means[1]) / len(pairs)
    torch.testing.assert_close(moment_distance(o, made.batch(made.labels(domains)), ONE), total, rtol=1e-9, atol=1e-12)
    if domains > 1:
        assert all(made.gradients(total, o)[2].flatten(1).any(1))  # every domain's features are moved


def test_cross_prediction() -> None:
    o = made.outputs(2)
    total = torch.zeros((), dtype=torch.float64)
    for d, i in product(range(2), range(5)):
        t, v = softmax(o.text_logits_DBC[d, i], 0), softmax(o.picture_logits_DBC[d, i], 0)
        total = total + (kl(v.detach(), t) + kl(t.detach(), v)) / 5
    same(cross_prediction(o, made.batch(made.labels(2))), total, o)


# --- discriminators ---


def bce(logit: Tensor, wanted: float) -> Tensor:
    s = torch.sigmoid(logit)
    return -(wanted * log(s) + (1 - wanted) * log(1 - s))


def discriminators(adversary: Adversary) -> Discriminators:
    torch.manual_seed(3)
    modules = Discriminators(3, feature_width=6, num_classes=CLASSES, adversary=adversary).double()
    for module in modules:
        module(torch.zeros(1, module_width(module), dtype=torch.float64))  # the reversal starts at zero
    return modules


def module_width(module: torch.nn.Module) -> int:
    return next(p.shape[1] for p in module.parameters() if p.ndim == 2)


def test_one_discriminator_of_all_sources_and_the_target() -> None:
    """DANN: both sides count alike, the features alone are seen."""
    o, modules = made.outputs(3), discriminators("dann")
    assert len(modules) == 1 and module_width(modules[0]) == 6
    assert modules[0].linear[0].out_features == 64 and modules[0].warmup == 100
    total = torch.zeros((), dtype=torch.float64)
    for d, i in product(range(3), range(5)):
        logit = modules[0].linear(o.fused_DBK[d, i])[0]
        total = total + (bce(logit, 0.8) / 10 if d == 2 else bce(logit, 0.2) / 20)
    found = adversarial(o, made.batch(made.labels(3)), modules, 0.8)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-14)
    assert made.gradients(found, o)[2].flatten(1).any(1).all()
    sources = adversarial(made.outputs(2), made.batch(made.labels(2)), modules, 0.8)
    assert sources.item() == 0  # there is no target yet


def test_cdan_sees_predictions_too() -> None:
    modules = discriminators("cdan")
    assert modules.pairs == [(0, 2)] and module_width(modules[0]) == 6 * CLASSES


def test_each_source_with_the_target_by_its_weight() -> None:
    """MDAN."""
    o, modules = made.outputs(3), discriminators("mdan")
    assert modules.pairs == [(0, 2), (1, 2)]
    weight, total = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    seen = modules.view(o)
    for j, (a, b) in enumerate(modules.pairs):
        for d, wanted in ((a, 0.2), (b, 0.8)):
            for i in range(5):
                total = total + weight[a] * bce(modules[j].linear(seen[d, i])[0], wanted) / (2 * 5 * 2)
    found = adversarial(o, made.batch(made.labels(3)), modules, 0.8, weight)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-14)


# --- source weights ---


def test_the_hardest_source_weighs_most() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    labels_DB[0, 2:] = -1
    loss = []
    for d in range(2):
        rows = [i for i in range(5) if labels_DB[d, i] >= 0]
        loss.append(-sum(log(softmax(o.fused_logits_DBC[d, i], 0))[labels_DB[d, i]] for i in rows) / len(rows))
    wanted = torch.cat([2 * torch.stack(loss).softmax(0), torch.ones(1)])
    found = hardest_sources(o, made.batch(labels_DB), 2, ONE)
    torch.testing.assert_close(found, wanted.detach())


# --- network ---


def features(domains: int = 2, size: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    x = [torch.randn(2 * domains * size, width, generator=rng) for width in (7, 9)]
    labels = torch.zeros(domains, size, dtype=torch.long)
    return Batch(x[0], None, x[1], None, labels, num_views=2, global_batch=size)


def network(**keys: object) -> M2CAN:
    torch.manual_seed(0)
    return M2CAN(GivenFeatures(7), GivenFeatures(9), 2, CLASSES, **keys)


def outputs_of(net: M2CAN, batch: Batch) -> Outputs:
    return net(batch)


@pytest.mark.parametrize(("kept", "lost"), [("text", "pictures"), ("pictures", "text")])
def test_one_modality_alone(kept: str, lost: str) -> None:
    net, batch = network(modalities=kept), features()
    other = replace(
        batch, **{{"text": "text", "pictures": "pictures"}[lost]: torch.randn(16, 9 if lost == "pictures" else 7)}
    )
    found, changed = outputs_of(net, batch), outputs_of(net, other)
    torch.testing.assert_close(found.logits_HQDBC, changed.logits_HQDBC, rtol=0, atol=0)
    assert found.logits_HQDBC.std(-2).min() > 0  # the other one is seen
    found.logits_HQDBC.sum().backward()
    used = [name for name, p in net.named_parameters() if p.grad is None]
    assert all("_head" in name for name in used)  # the rest takes part, as data parallelism wants
