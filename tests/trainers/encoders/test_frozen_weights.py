"""Frozen weights are written once a run: checkpoints name them, and everything that reads a checkpoint finds them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets_manifest.errors import InputError
from datasets_manifest.files import digests
from tests.trainers.tiny_run import make_loop, prepared_run, two_epochs
from trainers.encoders.weight_files import read_tensors, save_tensors
from trainers.loop.loop import Loop
from trainers.model.predictor import Predictor
from trainers.model.trained_network import complete_model
from trainers.preflight.preparation import Prepared
from trainers.tracking.registration import ModelToLog, save
from trainers.worker.resume import remove_drafts

FROZEN = [
    "train.epochs=3",
    "encoders.text.freeze=all",
    "encoders.picture.freeze=1",
    "encoders.picture.batch_norm=batch",
]
TEXTS = ["a sunny day", "rain"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("cards"), FROZEN)


@pytest.fixture(scope="module")
def trained(run: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, Path]:
    """The loop after two epochs, and its run's folder with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("runs") / "frozen"
    return two_epochs(run, folder), folder


def test_a_checkpoint_holds_what_trains(trained: tuple[Loop, Path]) -> None:
    loop, folder = trained
    frozen = {name for name, p in loop.network.named_parameters() if not p.requires_grad}
    assert any(name.startswith("text_encoder.") for name in frozen)
    assert any(name.startswith("picture_encoder.") for name in frozen)
    once = load_file(folder / "frozen.safetensors")
    assert set(once) == frozen
    for epoch in (1, 2):
        saved = load_file(folder / f"checkpoint_{epoch}" / "model" / "model.safetensors")
        assert set(saved) == set(loop.network.state_dict()) - frozen
        assert any("running_mean" in name for name in saved)  # batch statistics move, whatever is frozen
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_1", "checkpoint_2", "frozen.safetensors"]


def test_it_is_written_once(run: Prepared, trained: tuple[Loop, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained[1], folder)
    before = (folder / "frozen.safetensors").stat().st_ino
    loop = make_loop(run)
    loop.load(folder / "checkpoint_2")
    loop.save(folder / "checkpoint_3", {})
    assert (folder / "frozen.safetensors").stat().st_ino == before
    (folder / "frozen.safetensors").unlink()
    loop.save(folder / "checkpoint_4", {})
    make_loop(run).load(folder / "checkpoint_3")
    (folder / ".frozen.safetensors.0123").write_text("of a process that was killed")
    remove_drafts(folder)
    assert not list(folder.glob(".*"))


def test_a_resumed_run_gives_the_same_numbers(run: Prepared, trained: tuple[Loop, Path]) -> None:
    straight, resumed = make_loop(run), make_loop(run)
    with torch.no_grad():
        for parameter in resumed.network.parameters():  # as of a hub that has other weights today
            parameter.add_(1)
    wanted = [straight.run_epoch()[0] for _ in range(3)][-1]
    resumed.load(trained[1] / "checkpoint_2")
    found, _ = resumed.run_epoch()
    same = {name for name in wanted if not name.startswith(("time/", "speed/"))}
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_moved_run_predicts_and_a_checkpoint_alone_does_not(trained: tuple[Loop, Path], tmp_path: Path) -> None:
    wanted = Predictor.load(trained[1] / "checkpoint_2").predict(TEXTS).probs
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained[1], moved)
    (moved / "best").symlink_to("checkpoint_2", target_is_directory=True)
    (tmp_path / "link").symlink_to(moved / "best", target_is_directory=True)
    for folder in (moved / "checkpoint_2" / "model", moved / "best", tmp_path / "link"):
        assert np.array_equal(Predictor.load(folder).predict(TEXTS).probs, wanted)
    shutil.copytree(moved / "checkpoint_2", tmp_path / "alone" / "checkpoint_2")
    with pytest.raises(
        InputError, match=r"frozen\.safetensors: the frozen weights of this checkpoint are missing"
    ) as caught:
        Predictor.load(tmp_path / "alone" / "checkpoint_2")
    assert "m2can models fetch" in str(caught.value)


def test_frozen_weights_that_were_altered_are_refused(
    run: Prepared, trained: tuple[Loop, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained[1], folder)
    weights = load_file(folder / "frozen.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "frozen.safetensors")
    for read in (make_loop(run).load, Predictor.load):
        with pytest.raises(InputError, match=r"frozen\.safetensors: is truncated or altered"):
            read(folder / "checkpoint_2")


def test_no_file_outside_the_run_is_read(trained: tuple[Loop, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[1], tmp_path / "run")
    reference = tmp_path / "run" / "checkpoint_2" / "model" / "frozen.json"
    reference.write_text(json.dumps(json.loads(reference.read_text()) | {"file": "../../../other.safetensors"}))
    with pytest.raises(InputError, match=rf"{tmp_path}/run/other\.safetensors: the frozen weights"):
        Predictor.load(tmp_path / "run" / "checkpoint_2")


def test_a_registered_model_is_complete(run: Prepared, trained: tuple[Loop, Path], tmp_path: Path) -> None:
    loop, folder = trained
    bundle = folder / "checkpoint_2" / "model"
    save(tmp_path / "model", ModelToLog(bundle, "m2can-frozen"))
    (tmp_path / "model" / "artifacts").rename(tmp_path / "fetched")
    found = load_file(tmp_path / "fetched" / "model" / "model.safetensors")
    assert set(found) == set(loop.network.state_dict())
    assert not list((tmp_path / "fetched").rglob("frozen.*"))
    wanted = Predictor.load(bundle).predict(TEXTS).probs
    assert np.array_equal(Predictor.load(tmp_path / "fetched" / "model").predict(TEXTS).probs, wanted)
    with complete_model(tmp_path / "fetched" / "model") as same:
        assert same == tmp_path / "fetched" / "model"


def test_checkpoints_that_hold_all_weights_still_load(
    run: Prepared, trained: tuple[Loop, Path], tmp_path: Path
) -> None:
    """As runs with frozen encoders wrote them before."""
    shutil.copytree(trained[1] / "checkpoint_2", tmp_path / "checkpoint_2")
    model = tmp_path / "checkpoint_2" / "model"
    (model / "frozen.json").unlink()
    save_file(trained[0].network.state_dict(), model / "model.safetensors")
    (tmp_path / "checkpoint_2" / "files.json").write_text(json.dumps(digests(tmp_path / "checkpoint_2")))
    old = make_loop(run)
    old.load(tmp_path / "checkpoint_2")
    old.save(tmp_path / "checkpoint_3", {})
    new = make_loop(run)
    new.load(tmp_path / "checkpoint_3")
    assert new.run_epoch()[0]["loss/total"] == old.run_epoch()[0]["loss/total"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_are_readable_for_those_who_may_read_other_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "weights", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == mode
    assert read_tensors(tmp_path / "weights")["a"].tolist() == [1, 1]
