"""Early stopping by the label-free score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers.made_run import made_run
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.journal.outcome import stopped_early
from trainers.loop.patience import Patience
from trainers.m2can.collective import Collective
from trainers.preflight.preparation import Prepared

STILL = [f"optimizer.lr.{part}=0" for part in ("encoders", "projections", "fusion", "heads")]
CPU = torch.device("cpu")


def after(scores: list[float], epochs: int, warmup: int = 0) -> int:
    """After how many epochs a run with these scores ends."""
    patience = Patience(epochs, warmup)
    for epoch, score in enumerate(scores, 1):
        patience.add(epoch, score, Collective(), CPU)
        if patience.is_over(epoch):
            return epoch
    return len(scores)


@pytest.mark.parametrize(("scores", "epochs", "warmup", "ends"), [
    ([0.1, 0.2, 0.3, 0.4], 1, 0, 4),
    ([0.1, 0.2, 0.2, 0.9], 1, 0, 3),  # as good is not better
    ([0.1, 0.3, 0.2, 0.2, 0.9], 2, 0, 4),
    ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], 2, 3, 5),  # the warm-up does not count
    ([float("nan")] * 6, 2, 0, 2),
    ([float("nan"), -3.0, float("nan"), -2.0, -2.5, -2.5], 2, 0, 6),
])  # fmt: skip
def test_a_run_ends_after_epochs_without_a_better_score(
    scores: list[float], epochs: int, warmup: int, ends: int
) -> None:
    assert after(scores, epochs, warmup) == ends


def test_all_workers_go_by_the_first_ones_score() -> None:
    class Second(Collective):
        rank, world_size = 1, 2

        def sum_(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.5  # of the first worker

    patience = Patience(1, 0)
    patience.add(1, 0.7, Second(), CPU)
    assert patience.best_score == 0.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Nothing moves, batch statistics neither, so no epoch is better than the first."""
    still = [
        "train.epochs=6",
        "train.patience=2",
        "schedule.lowest_lr=0",
        "encoders.picture.batch_norm=frozen",
        *STILL,
    ]
    return prepared_run(tmp_path_factory.mktemp("cards"), still)


def test_a_resumed_run_stops_where_it_would_have(run: Prepared, tmp_path: Path) -> None:
    loop = make_loop(run)
    while not loop.is_over:
        metrics, _ = loop.run_epoch()
        loop.save(tmp_path / f"checkpoint_{loop.epoch}", {})
    assert loop.epoch == 3 and (loop.patience.best_epoch, loop.patience.best_score) == (1, metrics["selection/score"])
    assert loop._next is None  # no batches were asked for that nobody takes
    rates = {group["name"]: group["lr"] for group in loop.step.optimizers[1].param_groups}
    straight = make_loop(run)
    straight.load(tmp_path / "checkpoint_3")
    assert straight.is_over
    resumed = make_loop(run)
    resumed.load(tmp_path / "checkpoint_2")
    assert not resumed.is_over
    found, _ = resumed.run_epoch()
    assert resumed.is_over and found["loss/total"] == metrics["loss/total"]
    assert {group["name"]: group["lr"] for group in resumed.step.optimizers[1].param_groups} == rates
    assert min(rates.values()) > 0  # of the schedule of six epochs


def test_the_end_says_where_and_why(tmp_path: Path) -> None:
    outcome = made_run(tmp_path, overrides={"train": {"epochs": 9, "patience": 2}})
    wanted = "after epoch 3 of 9: no selection score better than epoch 3's 0.75 in 2 epochs (train.patience)"
    assert outcome.numbers()["stopped_early"] == stopped_early(outcome.card.recipe, outcome.records) == wanted
    plain = made_run(tmp_path / "whole", overrides={"train": {"epochs": 3, "patience": 2}})
    assert plain.numbers()["stopped_early"] is None
