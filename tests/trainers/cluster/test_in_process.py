"""Training in one process, without Ray's: the losses, files and endings of a run of Ray Train's."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch

from tests.trainers.features import test_features
from tests.trainers.features.test_features import Computed, feature_loop
from trainers.cluster.driver import train
from trainers.cluster.in_process import train_in_process, written_checkpoints
from trainers.encoders.weight_files import read_tensors
from trainers.failures import RunFailed, RunStopped
from trainers.journal.journal import EpochRecord
from trainers.journal.outcome import Outcome
from trainers.loop.loop import Loop
from trainers.preflight.preparation import prepare
from trainers.recipe.recipe import Recipe
from trainers.step.finite_check import NonFiniteLoss
from trainers.training_run import draw_finished, run_in_process

computed = test_features.computed  # the fixture
CPU = torch.device("cpu")
COMPUTED = ("loss/", "selection/", "target/", "source/", "uacr/", "lr/")
EVALUATION = "evaluation.safetensors"


def named(computed: Computed, name: str, *overrides: str) -> Recipe:
    return computed.recipe_with(f"run.name={name}", "tracking.enabled=false", *overrides)


def numbers(records: list[EpochRecord]) -> list[dict[str, float]]:
    """What was computed, without times and memory."""
    return [{key: x for key, x in record.metrics.items() if key.startswith(COMPUTED)} for record in records]


@pytest.fixture(scope="module")
def whole(computed: Computed) -> Outcome:
    return train_in_process(prepare(named(computed, "whole", "train.epochs=3")), CPU, floor=False)


@pytest.mark.slow
def test_ray_train_gives_the_same_numbers_and_files(whole: Outcome, computed: Computed, ray_cluster: None) -> None:
    on_ray = train(prepare(named(computed, "on-ray", "train.epochs=3")), floor=False)
    assert numbers(on_ray.records) == numbers(whole.records) and len(whole.records) == 3
    assert on_ray.chosen.epoch == whole.chosen.epoch
    for epoch, folder in whole.checkpoints.items():
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        other = on_ray.checkpoints[epoch]
        assert files == {str(file.relative_to(other)) for file in other.rglob("*") if file.is_file()}
        for name in ("model/model.safetensors", "state/training.safetensors", EVALUATION):
            ours, theirs = read_tensors(folder / name), read_tensors(other / name)
            assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[key]) for key, x in ours.items()), name
    rest = ["frozen.safetensors", "journal", "logs", "recipe.json"]
    assert {path.name for path in whole.folder.iterdir()} >= set(rest)
    assert {path.name for path in on_ray.folder.iterdir()} >= set(rest)


def test_the_losses_are_those_of_the_loop(whole: Outcome, computed: Computed) -> None:
    loop = feature_loop(prepare(computed.recipe_with("train.epochs=3")))
    for record in whole.records:
        metrics, _ = loop.run_epoch()
        for name in (name for name in metrics if name.startswith(COMPUTED)):
            assert record.metrics[name] == metrics[name], (record.epoch, name)


@pytest.mark.parametrize("at", [(1, 5), (2, 1)])
def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    at: tuple[int, int],
    whole: Outcome,
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, prepared = threading.Event(), prepare(named(computed, f"stopped-{at[0]}-{at[1]}", "train.epochs=3"))
    whole_step = Loop.run_step

    def step(self: Loop, slice_: Any, batch: Any) -> Any:
        if (slice_.epoch + 1, slice_.step + 1) == at:
            stop.set()
        return whole_step(self, slice_, batch)

    monkeypatch.setattr(Loop, "run_step", step)
    # The last step of an epoch has no place to stop behind it: the next one's first step has.
    said = "epoch 2 after step 1"
    with pytest.raises(RunStopped, match=rf"stopped in {said}; run.name={prepared.name} goes on from there"):
        train_in_process(prepared, CPU, stop=stop, floor=False)
    assert [one.epoch for one in written_checkpoints(prepared.folder)] == [1, None]
    heard: list[int] = []
    again = train_in_process(prepared, CPU, on_epoch=lambda record: heard.append(record.epoch), floor=False)
    assert numbers(again.records) == numbers(whole.records) and heard == [2, 3]
    ours, theirs = (read_tensors(one.checkpoints[3] / "state/training.safetensors") for one in (again, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_a_process_that_died_while_it_wrote_leaves_a_run_that_goes_on(
    whole: Outcome,
    computed: Computed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepared = prepare(named(computed, "died", "train.epochs=3"))

    class Died(BaseException):
        pass

    def die(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise Died

    with pytest.raises(Died):
        train_in_process(prepared, CPU, on_epoch=die, floor=False)
    newest = written_checkpoints(prepared.folder)[-1].folder
    (newest / "model" / "model.safetensors").write_bytes(b"half of it")
    (prepared.folder / ".checkpoint_half.draft").mkdir()
    again = train_in_process(prepared, CPU, floor=False)
    assert "note: a checkpoint is left out: " in capsys.readouterr().err
    assert numbers(again.records) == numbers(whole.records)
    assert not list(prepared.folder.glob(".checkpoint_*"))


def test_an_error_is_tried_again_from_the_last_checkpoint_as_often_as_workers_are_started_again(
    whole: Outcome,
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepared = prepare(named(computed, "failing", "train.epochs=3", "cluster.max_failures=1"))
    whole_epoch, fails = Loop.run_epoch, [2, 3]

    def epoch(self: Loop) -> Any:
        if fails and self.epoch + 1 == fails[0]:
            fails.pop(0)
            raise OSError("the disk blinked")
        return whole_epoch(self)

    monkeypatch.setattr(Loop, "run_epoch", epoch)
    with pytest.raises(RunFailed, match=r"failing failed \(OSError: the disk blinked\); .*logs says where"):
        train_in_process(prepared, CPU, floor=False)
    assert "failing failed (OSError: the disk blinked), it goes on from its last checkpoint" in capsys.readouterr().err
    assert numbers(train_in_process(prepared, CPU, floor=False).records) == numbers(whole.records)


def test_what_no_restart_can_mend_is_not_tried_again(
    computed: Computed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def fails(self: Loop) -> Any:
        calls.append(self.epoch)
        raise NonFiniteLoss("total is nan")

    monkeypatch.setattr(Loop, "run_epoch", fails)
    with pytest.raises(RunFailed, match="NonFiniteLoss"):
        train_in_process(prepare(named(computed, "not-finite")), CPU, floor=False)
    assert calls == [0]


def test_checkpoints_that_need_not_stay_are_removed(computed: Computed) -> None:
    outcome = train_in_process(
        prepare(named(computed, "kept", "train.epochs=4", "checkpoint.keep=1")), CPU, floor=False
    )
    scores = {record.epoch: record.metrics["selection/score"] for record in outcome.records}
    best = max(scores, key=lambda epoch: scores[epoch])
    assert set(outcome.checkpoints) == {best, 4}


def test_a_run_has_the_summary_and_its_report_is_drawn_later(whole: Outcome, computed: Computed) -> None:
    recipe = named(computed, "summary", "train.epochs=3")
    result = run_in_process(recipe, CPU)
    assert [path.name for path in result.report.iterdir()] == ["summary.json"]
    before = json.loads((result.report / "summary.json").read_text())
    assert (result.folder / "best").resolve() == result.checkpoint.resolve()
    assert draw_finished(recipe) == result.report and result.report_page.is_file()
    drawn = json.loads((result.report / "summary.json").read_text())
    assert drawn.pop("verdicts")  # of every validator: with the page alone, since they take seconds
    assert drawn == before
    assert {"loss_curves.png", "accuracy_curves.png"} <= {path.name for path in result.report.iterdir()}
