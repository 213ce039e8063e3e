"""Every experiment changes what is computed, in the way it says, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, log, softmax

from experiments.catalog import NAMES, UACR, applied
from experiments.gate import GatedFusion
from experiments.teacher import follow, make_teacher
from experiments.terms import cross_modal_of, proximity, task_of_soft_labels
from tests.trainers.m2can import made
from tests.trainers.m2can.test_losses import ONE, same
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.loop import Loop
from trainers.m2can.batch import Outputs
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.losses.inputs import TermInputs
from trainers.m2can.losses.task import task
from trainers.m2can.network import M2CAN, Fusion
from trainers.preflight.preparation import Prepared

CLASSES = 3


def inputs_of(o: Outputs, labels_DB: Tensor, num_sources: int = 2, weight_D: Tensor | None = None) -> TermInputs:
    return TermInputs(o, made.batch(labels_DB), ONE, num_sources, weight_D=weight_D)


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
        p, q = softmax(o.picture_logits_DBC[d, i], 0), softmax(o.text_logits_DBC[d, i], 0)
        u = (p * log(p / q)).sum()
        total = total + ((both[0] + both[1]) / 2 * torch.exp(-u) + u) / 5
    same(cross_modal_of(inputs_of(o, made.labels(2)), temperature, symmetric=True), total, o)


def test_soft_pseudo_labels_of_the_target_alone() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    labels_DB[2, 1] = -1
    soft_BC = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(9), dtype=torch.float64).softmax(-1)
    weight = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    one_hot, total = torch.eye(CLASSES, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for d in range(3):
        rows = [i for i in range(5) if labels_DB[d, i] >= 0]
        for i in rows:
            wanted = soft_BC[i] if d == 2 else one_hot[labels_DB[d, i]]
            parts = [(o.logits_HQDBC[h, q, d, i], 1 / 8) for h, q in product(range(2), range(4))]
            parts += [
                (o.fused_logits_DBC[d, i], 1.0),
                (o.text_logits_DBC[d, i], 0.5),
                (o.picture_logits_DBC[d, i], 0.5),
            ]
            for logits, share in parts:
                total = total - (wanted * log(softmax(logits, 0))).sum() * share * weight[d] / (3 * len(rows))
    same(task_of_soft_labels(inputs_of(o, labels_DB, weight_D=weight), soft_BC), total, o)


def test_soft_labels_that_are_sure_are_hard_ones() -> None:
    o, labels_DB = made.outputs(3), made.labels(3)
    sure = torch.eye(CLASSES, dtype=torch.float64)[labels_DB[2]]
    same(task_of_soft_labels(inputs_of(o, labels_DB), sure), task(o, made.batch(labels_DB), ONE), o)


def test_nearer_sources_weigh_more() -> None:
    o = made.outputs(3)
    near = torch.cat([o.text_VDBK[:, :1], o.text_VDBK[:, 2:], o.text_VDBK[:, 2:]], 1)
    o = replace(o, text_VDBK=near, picture_VDBK=o.picture_VDBK[:, [0, 2, 2]])  # source 1 lies where the target does
    found = proximity(inputs_of(o, made.labels(3)))
    assert found is not None and not found.requires_grad
    e = torch.exp(torch.tensor(-2.0))  # distances d and 0, their mean d/2
    torch.testing.assert_close(found, torch.stack([2 * e / (1 + e), 2 / (1 + e), torch.tensor(1.0)]).double())
    assert proximity(inputs_of(made.outputs(2), made.labels(2))) is None  # no target yet


def test_a_gate_starts_open_and_learns() -> None:
    torch.manual_seed(0)
    plain, gated = Fusion(), GatedFusion()
    gated.load_state_dict(plain.state_dict(), strict=False)
    text, picture = torch.randn(2, 2, 4, 256), torch.randn(2, 2, 4, 256)
    torch.testing.assert_close(gated(text, picture), plain(text, picture))
    gated(text, picture).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gated.gates.parameters())
    with torch.no_grad():
        gated.gates[0].bias.copy_(torch.tensor([50.0, -50.0]))  # texts alone
        gated.P.weight.zero_()
        gated.P.bias.zero_()
    f = gated(torch.ones(1, 1, 1, 256), torch.ones(1, 1, 1, 256))
    torch.testing.assert_close(f.flatten(), 2 * gated.h1(torch.ones(256)))


def test_the_teacher_follows() -> None:
    torch.manual_seed(0)
    net = M2CAN(GivenFeatures(7), GivenFeatures(9), 2, CLASSES)
    teacher = make_teacher(net)
    start = {name: p.clone() for name, p in teacher.named_parameters()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    follow(teacher, net, decay=0.9, step=1)  # (1 + 1)/(10 + 1) is less than 0.9
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, start[name] + 9 / 11)
        assert not p.requires_grad
    assert not teacher.training and net.training


# --- in a run ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    settings = ["train.epochs=3", "uacr.start=0.6", "objective.cdafa=0.3", "data.samples_per_epoch=12"]
    return prepared_run(tmp_path_factory.mktemp("cards"), settings)


def metrics_of(loop: Loop) -> list[dict[str, float]]:
    found = [loop.run_epoch()[0] for _ in range(3)]
    return [{k: v for k, v in metrics.items() if not k.startswith(("time/", "speed/"))} for metrics in found]


@pytest.fixture(scope="module")
def plain(run: Prepared) -> list[dict[str, float]]:
    return metrics_of(make_loop(run))


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_a_run(run: Prepared, plain: list[dict[str, float]], name: str) -> None:
    with applied(name):
        found = metrics_of(make_loop(run))
    assert all(np.isfinite(metrics["loss/total"]) for metrics in found)
    assert found != plain
    if name in UACR and name not in ("unselected-aligned",):  # these begin with the first selection
        assert found[0]["loss/total"] == plain[0]["loss/total"]


def test_nothing_is_left_behind(run: Prepared, plain: list[dict[str, float]]) -> None:
    with applied(*NAMES):
        pass
    assert metrics_of(make_loop(run)) == plain


def test_soft_labels_reach_the_step_with_their_rows(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    with applied("soft-labels", "unselected-aligned"):
        loop = make_loop(run)
        loop.run_epoch()
        target = loop.corpus.train[-1]

        def note(inputs: TermInputs, soft_BC: Tensor) -> Tensor:
            seen.append(soft_BC)
            return task_of_soft_labels(inputs, soft_BC)

        monkeypatch.setattr("experiments.catalog.task_of_soft_labels", note)
        probs = loop.score().of(target)["prob"]
        first = loop.plan().worker_step(0, 0, 1)
        loop.run_epoch()
    labelled = first.labels_DB[-1] >= 0
    rows = first.rows_DB[-1][labelled] - target.start
    assert seen[0].numpy().max(1)[labelled] == pytest.approx(probs[rows], abs=1e-5)


def test_balanced_labels_follow_the_prior(run: Prepared) -> None:
    with applied("balance"):
        loop = make_loop(run)
        metrics, _ = loop.run_epoch()
    shares = [metrics[f"uacr/class_share/{name}"] for name in loop.corpus.classes]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.2)


def test_the_prior_is_estimated_until_pseudo_labels_take_part(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, ["train.epochs=3", "uacr.warmup=2", "data.samples_per_epoch=12"])
    with applied("estimated-prior"):
        found = metrics_of(make_loop(run))
    priors = [[metrics[f"uacr/prior/{name}"] for name in run.corpus.classes] for metrics in found]
    assert priors[0] != priors[1] == priors[2]
    assert sum(priors[0]) == pytest.approx(1)
