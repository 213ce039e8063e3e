"""Each term against loops written straight from its definition: values and gradients, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, log, softmax

from tests.trainers.m2can import made
from trainers.m2can import losses
from trainers.m2can.batch import Outputs
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.losses import TERMS
from trainers.m2can.losses.adversarial import adversarial
from trainers.m2can.losses.class_confusion import class_confusion
from trainers.m2can.losses.cross_domain import cross_domain
from trainers.m2can.losses.cross_modal import cross_modal
from trainers.m2can.losses.task import task
from trainers.m2can.objective import Objective

ONE = Collective()


def same(found: Tensor, wanted: Tensor, outputs: Outputs) -> None:
    """Equal in value and in the gradient for every output of the network."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(made.gradients(found, outputs), made.gradients(wanted, outputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


# --- CMCFA and CDCFA ---


def naive_cross_modal(o: Outputs) -> Tensor:
    views, domains, size, _ = o.text_VDBK.shape
    total = torch.zeros((), dtype=torch.float64)
    for d in range(domains):
        for i in range(size):
            positive = everything = 0.0
            for a, b in product(range(views), repeat=2):
                for j in range(size):
                    similar = torch.exp(torch.dot(o.text_VDBK[a, d, i], o.picture_VDBK[b, d, j]))
                    everything = everything + similar
                    positive = positive + (similar if i == j else 0.0)
            p, q = softmax(o.picture_logits_DBC[d, i], 0), softmax(o.text_logits_DBC[d, i], 0)
            u = (p * log(p / q)).sum()
            total = total + (-log(positive / everything) * torch.exp(-u) + u) / size
    return total


@pytest.mark.parametrize("domains", [1, 2, 3])
def test_cross_modal(domains: int) -> None:
    o = made.outputs(domains)
    same(cross_modal(o, made.batch(made.labels(domains)), ONE), naive_cross_modal(o), o)


def naive_cross_domain(o: Outputs) -> Tensor:
    total = 0 * o.text_VDBK.sum()  # one domain has no pair and still a (zero) gradient
    for s, t in combinations(range(o.text_VDBK.shape[1]), 2):
        for a, b in product(range(2), repeat=2):
            for features in (o.text_VDBK, o.picture_VDBK):
                total = total + (features[a, s] @ features[b, t].T).mean()
    return -total / 8


@pytest.mark.parametrize("domains", [1, 2, 3, 4])
def test_cross_domain_equals_the_whole_matrices_of_inner_products(domains: int) -> None:
    o = made.outputs(domains)
    same(cross_domain(o, made.batch(made.labels(domains)), ONE), naive_cross_domain(o), o)


# --- MCC ---


def naive_class_confusion(logits: Tensor, temperature: float) -> Tensor:
    size, classes = logits.shape
    p = [softmax(row / temperature, 0) for row in logits]
    raw = [1 + math.exp(sum(x * math.log(x + 1e-5) for x in row.tolist())) for row in p]
    w = [size * r / sum(raw) for r in raw]
    m = [[sum(w[i] * p[i][c] * p[i][d] for i in range(size)) for d in range(classes)] for c in range(classes)]
    off_diagonal = torch.zeros((), dtype=torch.float64)
    for c in range(classes):
        column = sum(m[k][c] for k in range(classes))
        off_diagonal = off_diagonal + sum(m[c][d] / column for d in range(classes) if d != c)
    return off_diagonal / classes


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_class_confusion(classes: int, temperature: float) -> None:
    o = made.outputs(3, classes=classes)
    logits = o.fused_logits_DBC[2]
    same(class_confusion(logits, temperature, ONE), naive_class_confusion(logits, temperature), o)


# --- CDAFA ---


@pytest.fixture
def discriminators() -> Callable[[int], Discriminators]:
    def make(num_sources: int, calls: int = 0) -> Discriminators:
        torch.manual_seed(3)
        modules = Discriminators(num_sources + 1, feature_width=6, num_classes=3).double()
        for module in modules:
            for _ in range(calls):
                module(torch.zeros(1, 18, dtype=torch.float64))
        return modules

    return make


def naive_adversarial(
    o: Outputs, modules: Discriminators, pairs: list[tuple[int, int]], eps: float, reverse: float
) -> Tensor:
    """`reverse` multiplies what flows back to the features."""
    size = o.fused_DBK.shape[1]
    of_pair = dict(zip(combinations(range(round((1 + math.sqrt(1 + 8 * len(modules))) / 2)), 2), modules, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for a, b in pairs:
        for domain, wanted in ((a, 1 - eps), (b, eps)):
            for i in range(size):
                p = softmax(o.logits_HQDBC[:, 0, domain, i].mean(0), 0).detach()
                f = o.fused_DBK[domain, i]
                f = f.detach() + reverse * (f - f.detach())
                h = torch.stack([p[c] * f[k] for c in range(len(p)) for k in range(len(f))])
                s = torch.sigmoid(of_pair[a, b].linear(h))[0]
                total = total - (wanted * log(s) + (1 - wanted) * log(1 - s)) / (2 * size * len(pairs))
    return total


@pytest.mark.parametrize("calls", [0, 1, 5])
@pytest.mark.parametrize(
    ("sources", "domains", "pairs"),
    [
        (1, 2, [(0, 1)]),
        (2, 2, [(0, 1)]),
        (2, 3, [(0, 1), (0, 2), (1, 2)]),
        (3, 3, [(0, 1), (0, 2), (1, 2)]),
        (3, 4, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_adversarial(discriminators, sources: int, domains: int, pairs: list[tuple[int, int]], calls: int) -> None:
    o, modules = made.outputs(domains), discriminators(sources, calls)
    found = adversarial(o, made.batch(made.labels(domains)), modules, 0.8)
    wanted = naive_adversarial(o, modules, pairs, 0.8, reverse=-(2 / (1 + math.exp(-calls / 1000)) - 1))
    same(found, wanted, o)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, list(modules.parameters()), allow_unused=True) for x in (found, wanted)), strict=True
    ):
        assert (ours is None) == (theirs is None)  # a pair that takes no part gets no gradient at all
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_adversarial_of_one_source_is_zero_in_the_first_epoch(discriminators) -> None:
    modules = discriminators(1)
    assert adversarial(made.outputs(1), made.batch(made.labels(1)), modules, 0.8).item() == 0
    assert modules[0].calls.item() == 0


def test_each_pair_counts_its_own_calls_and_saves_them(discriminators) -> None:
    modules = discriminators(2)
    adversarial(made.outputs(2), made.batch(made.labels(2)), modules, 0.8)
    for _ in range(2):
        adversarial(made.outputs(3), made.batch(made.labels(3)), modules, 0.8)
    assert [int(m.calls) for m in modules] == [3, 2, 2]
    resumed = discriminators(2)
    resumed.load_state_dict(modules.state_dict())
    o = made.outputs(3)
    both = [adversarial(o, made.batch(made.labels(3)), m, 0.8) for m in (modules, resumed)]
    same(*both, o)


# --- task ---


def naive_task(o: Outputs, labels_DB: Tensor) -> Tensor:
    heads, pairs, domains, size, _ = o.logits_HQDBC.shape
    total = torch.zeros((), dtype=torch.float64)
    for d in range(domains):
        rows = [i for i in range(size) if labels_DB[d, i] >= 0]
        for i in rows:
            y, share = int(labels_DB[d, i]), 1 / (len(rows) * domains)
            for h, q in product(range(heads), range(pairs)):
                total = total - log(softmax(o.logits_HQDBC[h, q, d, i], 0)[y]) * share / (heads * pairs)
            total = total - log(softmax(o.logits_HQDBC[:, 0, d, i].mean(0), 0)[y]) * share
            total = total - log(softmax(o.text_logits_DBC[d, i], 0)[y]) * share / 2
            total = total - log(softmax(o.picture_logits_DBC[d, i], 0)[y]) * share / 2
    return total


@pytest.mark.parametrize("unlabelled", [[], [(1, 0), (2, 1), (2, 4)], [(2, i) for i in range(5)]])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_task_ignores_rows_without_a_label(heads: int, unlabelled: list[tuple[int, int]]) -> None:
    o, labels_DB = made.outputs(3, heads=heads), made.labels(3)
    for place in unlabelled:
        labels_DB[place] = -1
    found = task(o, made.batch(labels_DB), ONE)
    same(found, naive_task(o, labels_DB), o)
    for place in unlabelled:
        assert not made.gradients(found, o)[3][:, :, *place].any()


# --- the objective ---


def test_each_weight_multiplies_its_own_term(discriminators) -> None:
    o, batch = made.outputs(3), made.batch(made.labels(3))
    weights = {"cmcfa": 0.3, "cdcfa": 0.7, "cdafa": 0.11, "mcc": 0.13}  # λ_mcc is not λ_adv
    terms = Objective(num_sources=2, temperature=1.5, smoothing=0.9, weights=weights)(o, batch, ONE, discriminators(2))
    assert list(terms) == [term.name for term in TERMS if term.name in {"task", *weights}]
    same(terms["task"], naive_task(o, batch.labels_DB), o)
    same(terms["cmcfa"], 0.3 * naive_cross_modal(o), o)
    same(terms["cdcfa"], 0.7 * naive_cross_domain(o), o)
    same(terms["mcc"], 0.13 * naive_class_confusion(o.fused_logits_DBC[2], 1.5), o)
    pairs = list(combinations(range(3), 2))
    same(terms["cdafa"], 0.11 * naive_adversarial(o, discriminators(2), pairs, 0.9, reverse=-0.0), o)


def test_weight_zero_is_not_computed(discriminators, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("computed")

    names = [term.name for term in losses.weighted_terms()]
    for term in losses.weighted_terms():
        monkeypatch.setattr(f"trainers.m2can.losses.{term.module}.term", computed)
    o, batch, off = made.outputs(3), made.batch(made.labels(3)), dict.fromkeys(names, 0.0)
    assert list(Objective(num_sources=2, weights=off)(o, batch, ONE, discriminators(2))) == ["task"]
    for name in names:
        with pytest.raises(AssertionError, match="computed"):
            Objective(num_sources=2, weights=off | {name: 1.0})(o, batch, ONE, discriminators(2))


def test_mcc_and_cdafa_wait_for_the_target_and_the_discriminators() -> None:
    assert list(Objective(num_sources=2)(made.outputs(2), made.batch(made.labels(2)), ONE)) == [
        "task",
        "cmcfa",
        "cdcfa",
    ]
