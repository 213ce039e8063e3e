"""What `train.start_from` names, what is taken of it, and what is refused before anything starts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_manifest.errors import InputError
from tests.trainers.made_run import write_domain
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.vocabulary import make_vocabulary
from trainers.encoders.weight_files import read_weights
from trainers.model.card import card_files, load_card
from trainers.preflight.preparation import Prepared, claim
from trainers.tracking.run_sender import make_sender

EPOCHS = ["train.epochs=2", "uacr.warmup=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with postcards and the finished run `first` of two epochs."""
    folder = tmp_path_factory.mktemp("cards")
    prepared = prepared_run(folder, [*EPOCHS, "run.name=first"])
    claim(prepared)
    loop = make_loop(prepared)
    for epoch in (1, 2):
        loop.epoch = epoch  # its weights need no training here
        loop.save(prepared.folder / f"checkpoint_{epoch}", {})
    (prepared.folder / "report").mkdir()
    summary = {"last_epoch": 2, "chosen_epoch": 1}
    (prepared.folder / "report" / "summary.json").write_text(json.dumps(summary))
    (prepared.folder / "best").symlink_to("checkpoint_1", target_is_directory=True)
    return folder


def started(folder: Path, start: Path | str, *settings: str) -> Prepared:
    return prepared_run(folder, [*EPOCHS, f"train.start_from={start}", *settings])


def refused(folder: Path, start: Path | str, *settings: str) -> str:
    with pytest.raises(InputError) as caught:
        started(folder, start, *settings)
    return str(caught.value)


def cards(folder: Path, *domains: str) -> list[str]:
    return [str(folder / "postcards" / domain / "manifest.yaml") for domain in domains]


def test_a_finished_run_goes_on_from_its_last_checkpoint(finished: Path) -> None:
    for named in ("first", finished / "runs" / "first"):
        more = started(finished, named, "train.epochs=5")
        assert more.start is not None and more.start.checkpoint == finished / "runs" / "first" / "checkpoint_2"
        assert (more.start.epoch, more.taken) == (2, {})
        said = "goes on from the run first after epoch 2: epochs 3 to 5, rates by the schedule of 5 epochs"
        assert said in more.notes


def test_a_run_that_goes_on_keeps_what_the_rule_chose(finished: Path) -> None:
    more = started(finished, "first", "train.epochs=50", "uacr.update=null", "optimizer.lr.heads=null")
    before = load_card(finished / "runs" / "first" / "checkpoint_2" / "model").recipe
    assert more.recipe.uacr.update == before.uacr.update
    assert more.recipe.optimizer.lr.heads == before.optimizer.lr.heads


@pytest.mark.parametrize(("settings", "words"), [
    ([], "train.epochs: first has 2 epochs, which count; found 2; wanted more than 2, such as train.epochs=4"),
    (["train.epochs=3", "encoders.text.name=tiny:64"], "encoders.text.name: is not that of first, whose training goes on"),
    (["train.epochs=3", "optimizer.type=sgd"], "optimizer.type: is not that of first"),
    (["train.epochs=3", "train.precision=fp64"], "train.precision: is not that of first"),
])  # fmt: skip
def test_what_does_not_fit_the_run_is_refused(finished: Path, settings: list[str], words: str) -> None:
    found = refused(finished, "first", *settings)
    assert found.startswith(words)
    assert settings == [] or "for its weights alone, train.start_from=" in found


def test_a_run_goes_on_with_its_own_data(finished: Path, tmp_path: Path) -> None:
    seaside, city, mountain = cards(finished, "seaside", "city", "mountain")
    swapped = f"data.sources={json.dumps([city, seaside])}"
    assert "data: has other domains than first" in refused(finished, "first", "train.epochs=3", swapped)
    shutil.copytree(finished / "postcards", tmp_path / "postcards")
    records = tmp_path / "postcards" / "city" / "train.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    shorter = json.dumps([str(seaside), str(tmp_path / "postcards" / "city" / "manifest.yaml")])
    found = refused(finished, "first", "train.epochs=3", f"data.sources={shorter}")
    assert "data: has other records than first" in found and "'city': 29" in found and str(mountain) not in found


def test_what_is_not_there_or_has_not_ended_is_refused(finished: Path, tmp_path: Path) -> None:
    found = refused(finished, "fist")
    assert "train.start_from: there is no such run in" in found and "(nearest: first)" in found
    assert "is not a checkpoint" in refused(finished, tmp_path)
    running = finished / "runs" / "running"
    shutil.copytree(finished / "runs" / "first", running, symlinks=True)
    shutil.rmtree(running / "report")
    assert "run that has not ended" in refused(finished, "running")
    assert "run.name=running goes on" in refused(finished, "running")
    shutil.copytree(finished / "runs" / "first" / "report", running / "report")
    shutil.rmtree(running / "checkpoint_2")
    assert "whose last checkpoint, of epoch 2, is gone" in refused(finished, "running", "train.epochs=3")
    shutil.rmtree(running)


def test_a_checkpoint_gives_its_weights_to_another_target(finished: Path) -> None:
    best = finished / "runs" / "first" / "best"
    seaside, city, mountain = cards(finished, "seaside", "city", "mountain")
    swapped = [f"data.sources={json.dumps([mountain, city])}", f"data.target={seaside}", "run.name=second"]
    run = started(finished, best, *swapped)
    said = next(note for note in run.notes if note.startswith("starts from the weights of"))
    assert "not taken: 2 of a source that it lacks (heads.0.weight, heads.0.bias)" in said
    assert run.taken["heads.1.bias"] == "heads.1.bias" and "heads.0.bias" not in run.taken
    assert run.card.vocabulary == load_card(best / "model").vocabulary
    assert run.start is not None
    weights, theirs = run.start.weights(run.taken), read_weights(best / "model")
    loop = make_loop(run)
    fresh = loop.network.state_dict()["heads.0.bias"].clone()
    loop.network.load_state_dict(weights, strict=False)
    now = loop.network.state_dict()
    assert torch.equal(now["heads.0.bias"], fresh)
    assert all(torch.equal(now[name], theirs[other]) for name, other in run.taken.items())
    assert any(name.startswith("text_encoder.") for name in run.taken)
    assert len(run.taken) == len(now) - 2
    wanted = f"{best.resolve()}, weights"
    assert json.loads(card_files(run.card)["model.json"])["started_from"] == wanted
    assert make_sender(run.name, run.folder, run.card, run.corpus).tags["m2can.started_from"] == wanted


def test_other_classes_are_said(finished: Path, tmp_path: Path) -> None:
    new: list[Any] = [write_domain(tmp_path / name, name, ["no", "yes"], 12) for name in ("seaside", "city", "town")]
    data = [f"data.sources={json.dumps(new[:2])}", f"data.target={new[2]}"]
    best = finished / "runs" / "first" / "best"
    run = started(finished, best, *data, "run.name=other")
    said = next(note for note in run.notes if note.startswith("starts from the weights of"))
    assert "not taken: 8 of other classes (heads.0.weight, heads.0.bias, …)" in said
    assert not any(name.startswith("heads.") for name in run.taken)
    assert run.card.vocabulary == load_card(best / "model").vocabulary != make_vocabulary(run.recipe, run.corpus)
    claim(run)
    make_loop(run).save(run.folder / "checkpoint_1", {})
    again = started(finished, best, *data, "run.name=other")
    assert again.start is None and again.taken == {}  # from its own checkpoint, with its words
    assert (again.card.started_from, again.card.vocabulary) == (f"{best.resolve()}, weights", run.card.vocabulary)
    make_loop(again).load(run.folder / "checkpoint_1")
    shutil.rmtree(run.folder)


@pytest.mark.parametrize(("setting", "words"), [
    ("encoders.text.name=tiny:64", "encoders.text.name: is not the encoder of"),
    ("encoders.picture.name=torchvision:resnet18", "encoders.picture.name: is not the encoder of"),
])  # fmt: skip
def test_another_encoder_is_refused(finished: Path, setting: str, words: str) -> None:
    found = refused(finished, finished / "runs" / "first" / "best", setting, "encoders.picture.weights=random")
    assert found.startswith(words) and "wanted encoders." in found and "or no train.start_from" in found


def test_a_version_stays_the_one_that_was_found(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the run has a checkpoint: an alias may move meanwhile."""
    run = started(finished, finished / "runs" / "first" / "best", "run.name=named")
    assert run.start is not None
    claim(replace(run, start=replace(run.start, name="m2can-x:3")))
    asked: list[str] = []

    def look(recipe: Any, named: str, storage: Path) -> Any:
        asked.append(named)
        return run.start

    monkeypatch.setattr("trainers.preflight.start._of_registry", look)
    (run.folder / "recipe.json").unlink()
    started(finished, "m2can-x@candidate", "run.name=named")
    assert asked == ["m2can-x:3"]
    shutil.rmtree(run.folder)
