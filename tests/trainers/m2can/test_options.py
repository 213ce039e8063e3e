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
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.losses.adversarial import Discriminators, adversarial
from trainers.m2can.losses.cross_modal import cross_modal
from trainers.m2can.losses.cross_prediction import cross_prediction
from trainers.m2can.losses.moments import moment_distance
from trainers.m2can.losses.task import task
from trainers.m2can.network import M2CAN
from trainers.m2can.source_weights import source_weights
from trainers.m2can.teacher import follow, make_teacher

CLASSES = 3


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * log(p / q)).sum()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_symmetric_cross_modal_with_temperature(temperature: float) -> None:
    o = made.outputs(2)
    total = torch.zeros((), dtype=torch.float64)
    for d, i in product(range(2), range(5)):
        both = []
        for query, key in ((o.text_VDBK, o.picture_VDBK), (o.picture_VDBK, o.text_VDBK)):
            similar = [
                sum(torch.exp(query[a, d, i] @ key[b, d, j] / temperature) for a, b in product(range(2), repeat=2))
                for j in range(5)
            ]
            both.append(-log(similar[i] / sum(similar)))
        u = kl(softmax(o.picture_logits_DBC[d, i], 0), softmax(o.text_logits_DBC[d, i], 0))
        total = total + ((both[0] + both[1]) / 2 * torch.exp(-u) + u) / 5
    found = cross_modal(o, made.batch(made.labels(2)), ONE, temperature, symmetric=True)
    same(found, total, o)


def soft_batch(labels_DB: Tensor) -> Batch:
    probs = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(9), dtype=torch.float64).softmax(-1)
    return replace(made.batch(labels_DB), pseudo_BC=probs)


def test_soft_pseudo_labels_of_the_target_alone() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    labels_DB[2, 1] = -1
    batch, weight = soft_batch(labels_DB), torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    assert batch.pseudo_BC is not None
    one_hot = torch.eye(CLASSES, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for d in range(3):
        rows = [i for i in range(5) if labels_DB[d, i] >= 0]
        for i in rows:
            wanted = batch.pseudo_BC[i] if d == 2 else one_hot[labels_DB[d, i]]
            every = [o.logits_HQDBC[h, q, d, i] for h, q in product(range(2), range(4))]
            parts = [(z, 1 / 8) for z in every]
            parts += [
                (o.fused_logits_DBC[d, i], 1.0),
                (o.text_logits_DBC[d, i], 0.5),
                (o.picture_logits_DBC[d, i], 0.5),
            ]
            for logits, share in parts:
                total = total - (wanted * log(softmax(logits, 0))).sum() * share * weight[d] / (3 * len(rows))
    same(task(o, batch, ONE, weight), total, o)


def test_soft_labels_that_are_sure_are_hard_ones() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    sure = torch.eye(CLASSES, dtype=torch.float64)[labels_DB[2]]
    hard = made.batch(labels_DB)
    same(task(o, replace(hard, pseudo_BC=sure), ONE), task(o, hard, ONE), o)


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


def discriminators(**keys: object) -> Discriminators:
    torch.manual_seed(3)
    modules = Discriminators(3, feature_width=6, num_classes=CLASSES, **keys).double()
    for module in modules:
        module(torch.zeros(1, module_width(module), dtype=torch.float64))  # the reversal starts at zero
    return modules


def module_width(module: torch.nn.Module) -> int:
    return next(p.shape[1] for p in module.parameters() if p.ndim == 2)


def test_one_discriminator_of_all_sources_and_the_target() -> None:
    """DANN: both sides count alike, the features alone are seen."""
    o, modules = made.outputs(3), discriminators(pairs="merged", seen="features", hidden=4)
    assert len(modules) == 1 and module_width(modules[0]) == 6
    total = torch.zeros((), dtype=torch.float64)
    for d, i in product(range(3), range(5)):
        logit = modules[0].linear(o.fused_DBK[d, i])[0]
        total = total + (bce(logit, 0.8) / 10 if d == 2 else bce(logit, 0.2) / 20)
    found = adversarial(o, made.batch(made.labels(3)), modules, 0.8)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-14)
    assert made.gradients(found, o)[2].flatten(1).any(1).all()
    sources = adversarial(made.outputs(2), made.batch(made.labels(2)), modules, 0.8)
    assert sources.item() == 0  # there is no target yet


def test_each_source_with_the_target_by_its_weight() -> None:
    o, modules = made.outputs(3), discriminators(pairs="target", seen="joint")
    assert modules.pairs == [(0, 2), (1, 2)]
    weight, total = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    seen = modules.view(o)
    for j, (a, b) in enumerate(modules.pairs):
        for d, wanted in ((a, 0.2), (b, 0.8)):
            for i in range(5):
                total = total + weight[a] * bce(modules[j].linear(seen[d, i])[0], wanted) / (2 * 5 * 2)
    found = adversarial(o, made.batch(made.labels(3)), modules, 0.8, weight)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-14)


def test_the_reversal_grows_with_its_warmup() -> None:
    o, batch = made.outputs(3), made.batch(made.labels(3))
    moved = []
    for warmup in (1000.0, 10.0):
        modules = discriminators(seen="features", warmup=warmup)
        moved.append(made.gradients(adversarial(o, batch, modules, 0.8), o)[2])
    ratio = torch.tanh(torch.tensor(0.05)) / torch.tanh(torch.tensor(0.0005))  # 2/(1+exp(−x)) − 1 = tanh(x/2)
    torch.testing.assert_close(moved[1], moved[0] * ratio.double(), rtol=1e-4, atol=1e-12)


# --- source weights ---


def test_nearer_sources_weigh_more() -> None:
    o = made.outputs(3)
    near = torch.cat([o.text_VDBK[:, :1], o.text_VDBK[:, 2:], o.text_VDBK[:, 2:]], 1)
    o = replace(o, text_VDBK=near, picture_VDBK=o.picture_VDBK[:, [0, 2, 2]])  # source 1 lies where the target does
    found = source_weights("proximity", o, made.batch(made.labels(3)), 2, ONE)
    assert found is not None and not found.requires_grad
    e = torch.exp(torch.tensor(-2.0))  # distances d and 0, their mean d/2
    torch.testing.assert_close(found, torch.stack([2 * e / (1 + e), 2 / (1 + e), torch.tensor(1.0)]).double())
    two = made.outputs(2)
    assert source_weights("proximity", two, made.batch(made.labels(2)), 2, ONE) is None  # no target yet
    assert source_weights("uniform", o, made.batch(made.labels(3)), 2, ONE) is None


def test_the_hardest_source_weighs_most() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    labels_DB[0, 2:] = -1
    loss = []
    for d in range(2):
        rows = [i for i in range(5) if labels_DB[d, i] >= 0]
        loss.append(-sum(log(softmax(o.fused_logits_DBC[d, i], 0))[labels_DB[d, i]] for i in rows) / len(rows))
    wanted = torch.cat([2 * torch.stack(loss).softmax(0), torch.ones(1)])
    found = source_weights("hardest", o, made.batch(labels_DB), 2, ONE)
    assert found is not None
    torch.testing.assert_close(found, wanted.detach())


# --- network and teacher ---


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


def test_a_gate_starts_open_and_learns() -> None:
    plain, gated, batch = network(), network(gate=True), features()
    gated.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(outputs_of(gated, batch).logits_HQDBC, outputs_of(plain, batch).logits_HQDBC)
    outputs_of(gated, batch).logits_HQDBC.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gated.fusion.gates.parameters())
    with torch.no_grad():
        gated.fusion.gates[0].bias.copy_(torch.tensor([50.0, -50.0]))  # texts alone
        gated.fusion.P.weight.zero_()
        gated.fusion.P.bias.zero_()
    f = gated.fusion(torch.ones(1, 1, 1, 256), torch.ones(1, 1, 1, 256))
    torch.testing.assert_close(f.flatten(), 2 * gated.fusion.h1(torch.ones(256)))


def test_the_teacher_follows() -> None:
    net = network()
    teacher = make_teacher(net)
    start = {name: p.clone() for name, p in teacher.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    follow(teacher, net, decay=0.9, step=1)  # (1 + 1)/(10 + 1) is less than 0.9
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, start[name] + 9 / 11)
    follow(teacher, net, decay=0.9, step=1000)
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, start[name] + 1 - 2 / 11 * 0.9, msg=name)
        assert not p.requires_grad
    assert not teacher.training and net.training
