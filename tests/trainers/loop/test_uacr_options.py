"""Options of UACR in the loop: who labels the target, from what, and that the target's own labels stay unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.cluster.preparation import Prepared
from trainers.loop.loop import Loop
from trainers.loop.pseudo_labels import pseudo_labels
from trainers.m2can.calibration import find_temperature, sharpen
from trainers.m2can.collective import Collective
from trainers.m2can.neighbourhood import TargetView
from trainers.m2can.network import M2CAN
from trainers.m2can.pseudo_labels import estimate_prior
from trainers.model.device_batches import make_encoding, to_batch
from trainers.recipe.recipe import Uacr

FAST = ["train.epochs=3", "sam.rho=0", "data.samples_per_epoch=18"]
FULL = ["uacr.start=1", "uacr.prior=[1, 1, 1]"]
EVERYTHING = ["uacr.labels=soft", "uacr.teacher=ema", "uacr.refine=cross", "uacr.balance=true", "uacr.threshold=0.34"]


def run_with(folder: Path, *options: str) -> Prepared:
    return prepared_run(folder, [*FAST, *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


def probs_of(loop: Loop, network: M2CAN) -> np.ndarray:
    """Fused probabilities of the target's training rows by hand."""
    rows = loop.corpus.train[-1].rows
    host = next(loop.source.evaluate([rows], make_encoding(loop.recipe, loop.card.vocabulary)))
    batch = to_batch(host, np.full((1, len(rows)), -1), device=torch.device("cpu"), dtype=torch.float32)
    training = network.training
    network.eval()
    with torch.inference_mode():
        found = network(batch).fused_logits_DBC[0].softmax(-1).double().numpy()
    network.train(training)
    return found


def test_the_teacher_labels_and_the_network_is_measured(folder: Path) -> None:
    loop = make_loop(run_with(folder, *FULL, "uacr.teacher=ema", "uacr.labels=soft"))
    _, scored = loop.run_epoch()
    assert loop.teacher is not None
    teacher, network = probs_of(loop, loop.teacher), probs_of(loop, loop.network)
    assert np.abs(teacher - network).max() > 1e-3
    target = loop.corpus.train[-1]
    assert scored.of(target)["prob"] == pytest.approx(teacher.max(1), abs=1e-5)
    assert loop.kept_probs == pytest.approx(teacher[loop.kept_rows - target.start], abs=1e-5)
    assert scored.evidence.target_probs_NC == pytest.approx(network, abs=1e-5)


def test_soft_labels_reach_the_step_with_their_rows(folder: Path) -> None:
    loop = make_loop(run_with(folder, *FULL, "uacr.labels=soft", "uacr.unselected=align", "uacr.start=0.4"))
    loop.run_epoch()
    probs, seen = probs_of(loop, loop.network), 0
    start = loop.corpus.train[-1].start
    plan = loop.plan()
    for step in range(plan.num_steps):
        slice_ = plan.global_step(step)
        soft = loop._soft_labels(slice_)
        assert soft is not None
        labelled = slice_.labels_DB[-1] >= 0
        seen += labelled.sum()
        assert soft[labelled] == pytest.approx(probs[slice_.rows_DB[-1][labelled] - start], abs=1e-5)
    assert 0 < seen < plan.rows_DN.shape[1]


def test_balanced_labels_follow_the_prior() -> None:
    """Of a network that takes most for class 0."""
    rng = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(300, 3, generator=rng) + torch.tensor([2.0, 0.0, 0.0])).softmax(1)
    none = torch.empty(300, 0)
    view, prior = TargetView(probs, none, none, none, none, none), np.array([0.2, 0.3, 0.5])
    columns = {"label": probs.argmax(1).numpy(), "prob": probs.amax(1).numpy(), "variance": np.full(300, 0.5)}
    plain = pseudo_labels(Uacr(labels="soft"), columns, view, prior, Collective())
    assert np.bincount(plain.label_N).argmax() == 0 and (plain.label_N == columns["label"]).all()
    found = pseudo_labels(Uacr(balance=True), columns, view, prior, Collective())
    assert found.probs_NC is not None
    assert found.probs_NC.mean(0) == pytest.approx(prior, abs=1e-4)
    assert np.bincount(found.label_N, minlength=3) / 300 == pytest.approx(prior, abs=0.1)
    assert found.score_N == pytest.approx(found.probs_NC.max(1) * np.exp(-0.5), rel=1e-6)


def test_the_prior_is_estimated_until_pseudo_labels_take_part(folder: Path, tmp_path: Path) -> None:
    run = run_with(folder, "uacr.prior=estimated", "uacr.warmup=2")
    loop = make_loop(run)
    counts = [np.bincount(loop.labels[part.rows], minlength=3) + 1 for part in loop.corpus.train[:-1]]
    sources = np.mean([count / count.sum() for count in counts], axis=0)
    estimates, priors = [], []
    for epoch in range(3):
        metrics, scored = loop.run_epoch()
        assert scored.view is not None
        evidence = scored.evidence
        temperature = find_temperature(evidence.source_probs_MC, evidence.source_labels_M)
        estimates.append(estimate_prior(sharpen(scored.view.probs_NC.numpy(), temperature), sources))
        priors.append([metrics[f"uacr/prior/{name}"] for name in loop.corpus.classes])
        if epoch == 1:
            loop.save(tmp_path / "checkpoint", {})
    assert priors[0] == pytest.approx(estimates[0].tolist(), abs=1e-6)
    assert priors[1] == priors[2] == pytest.approx(estimates[1].tolist(), abs=1e-7)
    assert np.abs(estimates[2] - estimates[1]).max() > 1e-5  # a new estimate would be another one
    resumed = make_loop(run)
    resumed.load(tmp_path / "checkpoint")
    metrics, _ = resumed.run_epoch()
    assert [metrics[f"uacr/prior/{name}"] for name in loop.corpus.classes] == priors[2]


def losses(run: Prepared, labels: np.ndarray) -> list[float]:
    loop = make_loop(run)
    loop.labels = labels
    return [loop.run_epoch()[0]["loss/total"] for _ in range(2)]


@pytest.mark.parametrize("options", [(), EVERYTHING, ("train.target_labels=oracle",)], ids=["plain", "all", "oracle"])
def test_only_the_oracle_reads_the_targets_labels(folder: Path, options: tuple[str, ...]) -> None:
    run = run_with(folder, *options)
    labels = run.corpus.labels
    target = run.corpus.train[-1]
    other = labels.copy()
    other[target.rows] = (other[target.rows] + 1) % 3
    same = losses(run, labels) == losses(run, other)
    assert same == ("train.target_labels=oracle" not in options)


def test_everything_resumes_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    run = run_with(folder, *EVERYTHING)
    straight, resumed = make_loop(run), make_loop(run)
    straight.run_epoch()
    straight.save(tmp_path / "checkpoint", {})
    wanted = [straight.run_epoch()[0] for _ in range(2)]
    resumed.load(tmp_path / "checkpoint")
    found = [resumed.run_epoch()[0] for _ in range(2)]

    def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in metrics.items() if not name.startswith(("time/", "speed/"))}

    assert [timeless(metrics) for metrics in found] == [timeless(metrics) for metrics in wanted]
    assert straight.teacher is not None and resumed.teacher is not None
    for name, tensor in straight.teacher.state_dict().items():
        assert torch.equal(tensor, resumed.teacher.state_dict()[name]), name
