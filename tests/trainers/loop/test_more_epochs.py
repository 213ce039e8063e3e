"""More epochs for a finished run give what a longer run would have given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.loop import Loop
from trainers.loop.more_epochs import go_on_from

# What depends on the number of epochs is stated: the rule would choose it by them.
SAME = ["uacr.warmup=1", "uacr.update=0.2", "train.patience=3"]


def begun(folder: Path, epochs: int, *settings: str) -> Loop:
    return make_loop(prepared_run(folder, [*SAME, f"train.epochs={epochs}", *settings]))


def rates(loop: Loop) -> dict[str, float]:
    return {group["name"]: group["lr"] for optimizer in loop.step.optimizers for group in optimizer.param_groups}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with postcards and the last checkpoint of a run of two epochs."""
    folder = tmp_path_factory.mktemp("cards")
    short = begun(folder, 2, "schedule.mode=constant")
    for _ in range(2):
        short.run_epoch()
    short.save(folder / "checkpoint", {})
    return folder


def test_with_a_constant_rate_they_are_those_of_one_long_run(finished: Path) -> None:
    long = begun(finished, 4, "schedule.mode=constant")
    wanted = [long.run_epoch()[0] for _ in range(4)][2:]
    more = begun(finished, 4, "schedule.mode=constant")
    go_on_from(more, finished / "checkpoint")
    assert (more.epoch, more.step.number) == (2, 10)
    for metrics in wanted:
        assert metrics["uacr/kept"] > 0
        found, _ = more.run_epoch()
        same = {name for name in metrics if not name.startswith(("time/", "speed/"))}
        assert {name: found[name] for name in same} == {name: metrics[name] for name in same}
    for name, tensor in long.network.state_dict().items():
        assert torch.equal(tensor, more.network.state_dict()[name]), name
    assert more.is_over


def test_rates_are_those_of_the_longer_schedule(finished: Path) -> None:
    more, long = begun(finished, 4, "schedule.mode=poly"), begun(finished, 4, "schedule.mode=poly")
    go_on_from(more, finished / "checkpoint")
    for _ in range(2):
        long.run_epoch()
    assert rates(more) == rates(long)
    halved = begun(finished, 4, "schedule.mode=constant", "optimizer.lr.heads=1e-5")
    go_on_from(halved, finished / "checkpoint")
    assert rates(halved)["head_0"] == 1e-5  # the recipe's, not the checkpoint's
    assert halved.parts.optimizers["network"].state_dict()["state"]  # with its moments


def test_patience_counts_anew(finished: Path) -> None:
    more = begun(finished, 9)
    go_on_from(more, finished / "checkpoint")
    assert not more.patience.is_over(4) and more.patience.is_over(5)
