"""A run that goes on from a checkpoint ends as if it had not been interrupted, wherever that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_manifest.errors import InputError
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.cluster.journal_callback import JournalCallback
from trainers.journal.journal import Journal
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.collective import Collective
from trainers.preflight import inputs
from trainers.preflight.preparation import Prepared, claim, prepare
from trainers.step.finite_check import NonFiniteLoss


class SaveAfter(Observer):
    """Saves a checkpoint after one step of one epoch."""

    def __init__(self, epoch: int, steps: int, folder: Path) -> None:
        self.place, self.folder = (epoch, steps), folder

    def between_steps(self, loop: Loop) -> None:
        if (loop.epoch, loop.steps_done) == self.place:
            loop.save(self.folder, {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("cards"), ["train.epochs=3", "sam.rho=0.05"])


@pytest.mark.parametrize(("epoch", "steps"), [(0, 1), (1, 3)])
def test_from_the_middle_of_an_epoch_to_the_last_bit(run: Prepared, tmp_path: Path, epoch: int, steps: int) -> None:
    straight = make_loop(run, SaveAfter(epoch, steps, tmp_path / "checkpoint"))
    records = [straight.run_epoch()[0] for _ in range(3)]
    resumed = make_loop(run)
    resumed.load(tmp_path / "checkpoint")
    assert (resumed.epoch, resumed.steps_done) == (epoch, steps)
    for wanted in records[epoch:]:
        found, _ = resumed.run_epoch()
        same = {name for name in wanted if not name.startswith(("time/", "speed/"))}
        assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_step_that_is_not_finite_moves_nothing(run: Prepared) -> None:
    loop = make_loop(run)
    loop.run_epoch()
    objective = loop.step.objective

    def broken(outputs: Outputs, batch: Batch, collective: Collective, discriminators: Any) -> dict[str, torch.Tensor]:
        terms = objective(outputs, batch, collective, discriminators)
        # The first pass of SAM is well: it has moved the batch statistics when the second one fails.
        return terms if discriminators is None else {name: value * torch.nan for name, value in terms.items()}

    def state() -> dict[str, torch.Tensor]:
        discriminators = loop.parts.discriminators.state_dict(prefix="discriminators.")
        return {name: value.clone() for name, value in (loop.network.state_dict() | discriminators).items()}

    before, calls = state(), loop.parts.discriminators.counts()
    loop.step.objective = broken  # type: ignore[assignment]
    with pytest.raises(NonFiniteLoss):
        loop.run_epoch()
    assert calls[0] > 0
    assert loop.parts.discriminators.counts() == calls
    for name, value in state().items():
        assert torch.equal(value, before[name]), name


def test_bad_pictures_are_remembered(run: Prepared, tmp_path: Path) -> None:
    loop, resumed = make_loop(run), make_loop(run)
    loop.bad_pictures.add([(4, "truncated"), (17, "missing")])
    loop.save(tmp_path / "checkpoint", {})
    resumed.load(tmp_path / "checkpoint")
    assert resumed.bad_pictures.bad_N.nonzero()[0].tolist() == [4, 17]


def test_a_report_within_an_epoch_is_no_record(tmp_path: Path) -> None:
    callback = JournalCallback(str(tmp_path / "journal"))
    callback.after_report(None, [{"epoch": 0, "step": 3, "partial": 1.0}], None)
    assert Journal(str(tmp_path / "journal")).read() == []
    callback.after_report(None, [{"epoch": 1, "step": 5, "loss/total": 2.0}], None)
    assert [record.epoch for record in Journal(str(tmp_path / "journal")).read()] == [1]


def test_a_name_belongs_to_one_recipe(run: Prepared, tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    first = prepared_run(folder, ["run.name=mine"])
    claim(first)
    claim(prepared_run(folder, ["run.name=mine", "cluster.workers=2", "checkpoint.every_steps=4"]))
    with pytest.raises(InputError, match=r"run\.name.*'mine'.*train\.epochs=8") as caught:
        claim(prepared_run(folder, ["run.name=mine", "train.epochs=4"]))
    assert "differs in train.epochs" in str(caught.value)


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared_run(tmp_path, ["run.name=mine"])
    target = Path(first.recipe.data.target)
    rows = first.corpus.table.slice(first.corpus.train[-1].start, 4)
    few = tmp_path / "few.csv"
    few.write_text("id,label\n" + "".join(f"{row['id']},{first.corpus.classes[0]}\n" for row in rows.to_pylist()))
    claim(first)
    taught = prepared_run(tmp_path, ["run.name=taught", f"train.target_labels={few}"])
    claim(taught)
    seen: list[bool] = []  # whether pictures were looked for before
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "require_pictures", lambda corpus, most, again: seen.append(again) or [])
        for name in ("taught", "another"):
            prepared_run(tmp_path, [f"run.name={name}", f"train.target_labels={few}"])
    assert seen == [True, False]

    few.write_text(few.read_text().replace(first.corpus.classes[0], first.corpus.classes[1]))
    with pytest.raises(InputError, match=r"began with other data \(train\.target_labels changed since\)"):
        prepared_run(tmp_path, ["run.name=taught", f"train.target_labels={few}"])
    prepared_run(tmp_path, ["run.name=another", f"train.target_labels={few}"])

    split = target.parent / "train.jsonl"
    split.write_text(split.read_text().replace("a ", "one ", 1))
    with pytest.raises(InputError, match=rf"run\.name.*\({target.parent.name}, split train changed since\)"):
        prepare(first.recipe)
