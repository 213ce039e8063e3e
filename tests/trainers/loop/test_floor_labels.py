"""Pseudo labels that begin with the floor's: before the first epoch, in later votes, and after a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.floor import find_floor, labels_by_floor, start_from_floor
from trainers.loop.floor_labels import FloorLabels, make_floor_labels, read_floor
from trainers.loop.loop import Loop
from trainers.m2can.collective import Collective
from trainers.m2can.floor import FloorHead
from trainers.model.floor_files import write_floor
from trainers.preflight.preparation import Prepared
from trainers.recipe import apply_override, make_recipe
from trainers.recipe.training_rule import decide
from trainers.validators import ValidatorInputs
from trainers.worker.floor import make_floor, take_floor

FROZEN = [*(f"encoders.{name}.freeze=all" for name in ("text", "picture")), "encoders.picture.batch_norm=frozen"]
OPTIONS = [*FROZEN, "uacr.warmup=0", "uacr.start=0.5", "train.epochs=3", "uacr.update=0.2"]


def head_of(loop: Loop) -> FloorHead:
    return FloorHead((loop.network.text_encoder.width, loop.network.picture_encoder.width), len(loop.corpus.classes))


def labelled_by_floor(run: Prepared, folder: Path) -> tuple[Loop, FloorLabels]:
    """A loop as a worker starts it: the floor is written, read again, and labels."""
    loop = make_loop(run)
    found = find_floor(loop)
    assert found is not None
    write_floor(folder, found.network, loop.frozen, loop.card, found.metrics, found.evaluation)
    head = head_of(loop).to(loop.device, loop.dtype)
    source = read_floor(folder, head)
    assert source is not None
    floor = make_floor_labels(source, loop.collective, head, len(source))
    assert floor is not None
    start_from_floor(loop, floor)
    return loop, floor


def test_the_target_takes_part_from_the_first_step_and_a_resumed_run_goes_the_same_way(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, OPTIONS)
    assert labels_by_floor(run.card.recipe)
    loop, floor = labelled_by_floor(run, tmp_path / "run")
    target = loop.corpus.train[-1]
    assert len(loop.pseudo_labels.rows) > 0 and loop.plan().num_domains == 3
    assert read_floor(tmp_path / "none", head_of(loop)) is None
    network = find_floor(loop).network  # type: ignore[union-attr]
    with loop.batches.evaluate([target.rows]) as feed:
        ((_, batch),) = feed
        of_floor = network.eval()(batch).single().fused_logits_DBC[0].argmax(-1).numpy()
    places = loop.pseudo_labels.rows - target.start
    assert np.array_equal(loop.pseudo_labels.labels, of_floor[places])

    loop.run_epoch()
    loop.save(tmp_path / "checkpoint", {})
    resumed = make_loop(run)
    resumed.load(tmp_path / "checkpoint")
    kept = resumed.pseudo_labels.rows
    start_from_floor(resumed, floor)
    assert np.array_equal(resumed.pseudo_labels.rows, kept)  # those of the checkpoint, not the floor's own again
    for each in (loop, resumed):
        while not each.is_over:
            each.run_epoch()
    assert np.array_equal(loop.pseudo_labels.rows, resumed.pseudo_labels.rows)
    weights, others = loop.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_quotas_follow_the_shares_that_were_estimated_with_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = torch.tensor([0.1, 0.7, 0.2], dtype=torch.float64)
    monkeypatch.setattr("trainers.loop.floor.estimate_shares", lambda *_: shares)
    run = prepared_run(tmp_path, [*OPTIONS, "uacr.prior=auto", "uacr.threshold=0"])
    loop, session = make_loop(run), Told()
    make_floor(loop, tmp_path / "run", session)
    take_floor(loop, tmp_path / "run")
    assert loop.pseudo_labels.prior().tolist() == shares.tolist()
    target, kept = loop.corpus.train[-1], np.bincount(loop.pseudo_labels.labels, minlength=3)
    assert (kept <= np.floor(0.5 * len(target) * shares.numpy() + 1e-9)).all() and kept[1] > kept[0]
    ((_, metrics),) = session.told
    assert {name: x for name, x in metrics.items() if name.startswith("shares/")} == {
        f"shares/{name}": share for name, share in zip(loop.corpus.classes, shares.tolist(), strict=True)
    }
    loop.save(tmp_path / "checkpoint", {})
    added = make_loop(run)  # a run that adds epochs to this one has no floor
    added.load(tmp_path / "checkpoint")
    assert added.pseudo_labels.prior().tolist() == shares.tolist()

    monkeypatch.setattr("trainers.loop.floor.estimate_shares", lambda *_: None)
    plain = make_loop(run)
    make_floor(plain, tmp_path / "other", session)
    take_floor(plain, tmp_path / "other")
    assert plain.pseudo_labels.prior().tolist() == [1 / 3] * 3 and len(plain.pseudo_labels.rows)


class Told:
    """A worker's session that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, float]]] = []

    def post(self, kind: str, content: dict[str, float]) -> None:
        self.told.append((kind, content))


def test_both_vote_once_they_are_equally_sure() -> None:
    """A floor that is ten times less sure still decides where the network hesitates, and no more than that."""
    sure = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    evidence = ValidatorInputs(
        target_probs_NC=np.zeros((0, 2)), target_features_NK=np.zeros((0, 1)),
        source_probs_MC=sure.softmax(1).numpy(), source_features_MK=np.zeros((2, 1)), source_labels_M=np.array([0, 1]),
        mixed_probs_RC=np.zeros((0, 2)), mixed_dominant_R=np.zeros(0), mixed_other_R=np.zeros(0),
    )  # fmt: skip
    floor = FloorLabels(FloorHead((1, 1), 2), (sure / 10).softmax(1).numpy())
    network = torch.tensor([[0.1, 0.0], [2.0, 0.0], [4.0, 0.0]])
    against = torch.tensor([[0.0, 0.3]] * 3)  # 3 once it is as sure
    label, prob = floor.vote(against, network, evidence)
    assert label.tolist() == [1, 1, 0]
    assert prob.tolist() == pytest.approx(torch.sigmoid(torch.tensor([1.45, 0.5, 0.5])).tolist(), abs=1e-4)


class Second(Collective):
    """A worker that has nothing and is told what the first one has."""

    rank, world_size = 1, 2

    def __init__(self, first: list[Tensor]) -> None:
        self.first = first

    def sum_(self, x: Tensor) -> Tensor:
        return x + 1

    def sum_all(self, tensors: list[Tensor]) -> list[Tensor]:  # type: ignore[override]
        return [mine + other for mine, other in zip(tensors, self.first, strict=True)]


def test_every_worker_has_the_first_ones_floor() -> None:
    first, mine = FloorHead((2, 3), 4), FloorHead((2, 3), 4)
    for number, x in enumerate(first.state_dict().values()):
        x.fill_(number + 0.5)
    source = np.full((5, 4), 0.25)
    found = make_floor_labels(None, Second([*first.state_dict().values(), torch.from_numpy(source)]), mine, 5)
    assert found is not None and np.array_equal(found.source_probs_MC, source)
    assert all(torch.equal(x, first.state_dict()[name]) for name, x in found.head.state_dict().items())
    assert make_floor_labels(None, Collective(), mine, 5) is None  # nobody has one


@pytest.mark.parametrize(
    "override", ["uacr.warmup=1", "uacr.enabled=false", "encoders.text.freeze=none", "preset=published"]
)
def test_other_recipes_are_labelled_by_the_network_alone(override: str) -> None:
    tree: dict[str, object] = {"data": {"sources": ["a"], "target": "b"}}
    for text in [*OPTIONS, override]:
        apply_override(tree, text)
    assert not labels_by_floor(decide(make_recipe(tree), 100)[0])
