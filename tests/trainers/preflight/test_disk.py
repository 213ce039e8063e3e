"""How much disk checkpoints take, and what is refused before a run fills it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.postcards.generate import write_postcards
from tests.trainers.tiny_run import make_loop, prepared_run, small_recipe
from trainers.cluster.driver import train
from trainers.preflight.disk import most_at_once, retention
from trainers.preflight.preparation import prepare
from trainers.recipe import make_recipe
from trainers.worker.reports import evaluation_tensors

RECIPES = {
    "adam": [],
    "sgd in fp64": ["train.precision=fp64", "optimizer.type=sgd"],
    "adamw, the discriminators of MDAN": ["optimizer.type=adamw", "objective.discriminators=mdan"],
    "one source, frozen encoders": [
        "encoders.text.freeze=all",
        "encoders.picture.freeze=all",
        "optimizer.type=adadelta",
    ],
}


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_size_is_known_before_the_first_checkpoint(tmp_path: Path, settings: list[str]) -> None:
    if "encoders.text.freeze=all" in settings:
        manifests = write_postcards(tmp_path / "postcards", seed=3, train=30, val=12)
        settings = [*settings, f"data.sources={[str(next(iter(manifests.values())))]}"]
    run = prepared_run(tmp_path, ["uacr.warmup=1", "uacr.start=1", "encoders.text.name=tiny:256", *settings])
    loop = make_loop(run)
    _, scored = loop.run_epoch()
    loop.save(tmp_path / "checkpoint", evaluation_tensors(loop, scored))
    real = sum(file.stat().st_size for file in (tmp_path / "checkpoint").rglob("*") if file.is_file())
    assert real <= run.checkpoint_bytes <= 1.1 * real
    once = sum(file.stat().st_size for file in tmp_path.glob("frozen.safetensors"))
    assert once <= run.frozen_bytes <= 1.1 * once
    assert (once > 0) == ("encoders.text.freeze=all" in settings)


def test_memory_holds_weights_gradients_and_optimizer(tmp_path: Path) -> None:
    def state_bytes(*settings: str) -> int:
        return prepared_run(tmp_path, ["sam.rho=0", *settings]).state_bytes

    loop = make_loop(prepared_run(tmp_path))
    weights = sum(x.nbytes for module in (loop.network, loop.parts.discriminators) for x in module.parameters())
    assert state_bytes() == pytest.approx(4 * weights, rel=0.01)  # beside the weights: gradients, two moments
    assert state_bytes("optimizer.type=sgd") == pytest.approx(3 * weights, rel=0.01)
    assert state_bytes("train.precision=fp64") == pytest.approx(8 * weights, rel=0.01)
    assert state_bytes("sam.rho=0.05") == pytest.approx(5 * weights, rel=0.02)


def keeping(**settings: Any) -> Any:
    return make_recipe(
        {"data": {"sources": ["a"], "target": "b"}, "checkpoint": {"keep": None, **settings}, "train": {"epochs": 10}}
    )


def test_as_many_stay_as_fit() -> None:
    assert retention(keeping(max_disk="2GB"), 200_000_000).num_to_keep == 8
    assert retention(keeping(max_disk="2GB", keep=3), 200_000_000).num_to_keep == 3
    assert retention(keeping(max_disk="60GB"), 200_000_000).num_to_keep == 10
    assert retention(keeping(every_steps=5), 200_000_000).num_to_keep == 11
    assert retention(keeping(), 200_000_000).num_to_keep is None
    assert most_at_once(keeping(keep=30), 200_000_000) == most_at_once(keeping(), 200_000_000) == 12
    for recipe in (keeping(max_disk="2GB"), keeping(max_disk=2_099_999_999)):
        assert most_at_once(recipe, 200_000_000) * 200_000_000 <= recipe.checkpoint.max_disk


def test_too_small_a_budget_is_refused(tmp_path: Path) -> None:
    size = prepared_run(tmp_path).checkpoint_bytes
    with pytest.raises(InputError, match=rf"checkpoint\.max_disk.*at least {3 * size}"):
        prepared_run(tmp_path, [f"checkpoint.max_disk={3 * size - 1}"])
    assert not any("disk" in note for note in prepared_run(tmp_path, [f"checkpoint.max_disk={3 * size}"]).notes)


def test_frozen_weights_count_once(tmp_path: Path) -> None:
    frozen = ["encoders.text.freeze=all", "encoders.text.name=tiny:256"]
    run, whole = prepared_run(tmp_path, frozen), prepared_run(tmp_path, frozen[1:])
    assert run.checkpoint_bytes < whole.checkpoint_bytes - 2.9 * run.frozen_bytes  # nor have they moments
    recipe, size, once = keeping(max_disk="2GB"), 200_000_000, 400_000_000
    assert retention(recipe, size, once).num_to_keep == 6
    assert most_at_once(recipe, size, once) * size + once == recipe.checkpoint.max_disk
    least = 3 * run.checkpoint_bytes + run.frozen_bytes
    with pytest.raises(InputError, match=rf"the frozen weights .* MB once; .*at least {least}"):
        prepared_run(tmp_path, [*frozen, f"checkpoint.max_disk={least - 1}"])
    assert not any("disk" in note for note in prepared_run(tmp_path, [*frozen, f"checkpoint.max_disk={least}"]).notes)


def test_a_full_disk_is_noticed_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared_run(tmp_path, ["train.epochs=4"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6 * run.checkpoint_bytes - 1))
    assert any("set checkpoint.keep or checkpoint.max_disk" in note for note in prepare(run.recipe).notes)
    with pytest.raises(InputError, match=r"checkpoint\.max_disk.*free"):
        prepared_run(tmp_path, ["train.epochs=4", "checkpoint.max_disk=1GB"])
    named = ["train.epochs=4", "checkpoint.max_disk=1GB", "run.name=known"]
    before = tmp_path / "runs" / "known" / "checkpoint_1"
    before.mkdir(parents=True)
    (before / "model.safetensors").write_bytes(b"\0" * 3 * run.checkpoint_bytes)  # a run that goes on has some already
    assert not any("disk" in note for note in prepared_run(tmp_path, named).notes)


@pytest.mark.slow
def test_a_run_stays_within_its_budget(tmp_path: Path, ray_cluster: None) -> None:
    size = prepared_run(tmp_path).checkpoint_bytes
    budget = 3 * size + 1000  # a checkpoint holds the recipe's text, and the name below is another
    settings = [f"checkpoint.max_disk={budget}", "checkpoint.every_steps=1", "train.epochs=3", "run.name=tight"]
    run = prepare(small_recipe(tmp_path, settings))
    most, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            sizes = {}
            for folder, _, files in os.walk(run.folder):  # passes over what is removed meanwhile
                for file in files if "checkpoint_" in folder else ():
                    with contextlib.suppress(FileNotFoundError):
                        sizes[os.path.join(folder, file)] = os.stat(os.path.join(folder, file)).st_size
            number = len({Path(file).relative_to(run.folder).parts[0] for file in sizes})
            most[:] = max(most[0], number), max(most[1], sum(sizes.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcome = train(run)
    finally:
        ended.set()
        watcher.join()
    assert outcome.checkpoint.is_dir()
    assert 1 < most[0] <= most_at_once(run.recipe, size) == 3
    assert size < most[1] <= budget
