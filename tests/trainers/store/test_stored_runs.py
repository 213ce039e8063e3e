"""Whole runs whose folder lies in an object store: killed on one machine, they go on exactly on another that never saw them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from services.model_files import model_files
from services.runs import delete_run, list_runs, runs_at, show_run
from tests.object_store import object_store
from tests.trainers.tiny_run import small_recipe
from trainers.model.predictor import Predictor
from trainers.preflight.inputs import read_inputs
from trainers.store.run_store import COPIES, RunStore

EPOCHS = 6
RUNS = "s3://runs/team/shop"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with object_store("runs") as client:
        yield client


@pytest.fixture(scope="module")
def recipe(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    overrides = [f"run.storage={RUNS}", f"train.epochs={EPOCHS}", "checkpoint.keep=2", "checkpoint.every_steps=2"]
    overrides += ["encoders.text.freeze=all", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    tree = small_recipe(folder, overrides).model_dump(mode="json")
    (folder / "recipe.json").write_text(json.dumps(tree))
    return folder / "recipe.json"


def start(recipe: Path, machine: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """`m2can train` on a machine, which is a folder for working copies and a Ray of its own."""
    command = [sys.executable, "-m", "services.cli.main", "train", str(recipe), "--set", f"run.name={name}"]
    command += more or ["--trace", str(machine.with_suffix(f".{name}"))]
    environment = os.environ | {COPIES: str(machine), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def losses(machine: Path, name: str) -> dict[tuple[int, int], Any]:
    lines = [json.loads(line) for line in machine.with_suffix(f".{name}").read_text().splitlines()]
    return {(line["epoch"], line["step"]): line for line in lines}


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run `whole`, on a machine of its own, and what its command printed."""
    machine = tmp_path_factory.mktemp("whole") / "machine"
    return machine, ended(start(recipe, machine, "whole"))


def test_a_killed_run_goes_on_exactly_on_a_machine_that_never_saw_it(
    recipe: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run = RunStore(f"{RUNS}/cut")
    with start(recipe, first, "cut") as process:
        while not run.has("journal/epoch-00002.json"):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not run.has(f"journal/epoch-{EPOCHS:05d}.json")
    assert f"stored      {RUNS}/cut" in ended(start(recipe, second, "cut"))
    expected, before, after = losses(whole[0], "whole"), losses(first, "cut"), losses(second, "cut")
    assert len(expected) == EPOCHS * 5 and min(after)[0] > 1
    # Steps whose losses the killed driver had not been told are in neither.
    assert {step: expected[step] for step in before | after} == before | after
    assert (EPOCHS, 5) in after and len(after) >= 5
    assert len({name.partition("/")[0] for name in run.listing() if name.startswith("checkpoint_")}) <= 3
    assert (
        "run=cut rank=0"
        in (second / "work").joinpath(run.folder.relative_to(run.folder.parents[4]), "logs/rank-0.log").read_text()
    )


def test_commands_look_at_runs_in_the_store(
    whole: tuple[Path, str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COPIES, str(tmp_path / "laptop"))
    assert "whole" in [run.name for run in list_runs(runs_at(RUNS))]
    there = show_run("whole", runs_at(RUNS))
    assert (
        there.state == "finished"
        and there.epochs == (EPOCHS, EPOCHS)
        and there.bytes
        and there.stored == f"{RUNS}/whole"
    )
    assert len(there.run_ids) == len(there.models) == 1
    predictor = Predictor.load(model_files(f"{RUNS}/whole"))
    assert predictor.predict(["a lovely day"]).labels[0] in predictor.classes
    further = small_recipe(recipe.parent, [f"run.storage={RUNS}", "run.name=more", "train.start_from=whole", "train.epochs=9",
                                           "encoders.text.freeze=all", "tracking.enabled=false"])  # fmt: skip
    begun = read_inputs(further).start
    assert begun is not None and begun.epoch == EPOCHS and (begun.model / "model.safetensors").is_file()
    with pytest.raises(InputError, match="is the name of a run with another recipe"):
        read_inputs(small_recipe(recipe.parent, [f"run.storage={RUNS}", "run.name=whole", "tracking.enabled=false"]))
    assert show_run(f"{RUNS}/cut", Path("runs")).name == "cut"


def test_a_dry_run_and_a_floor_alone_lie_in_the_store_too(recipe: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    found = ended(start(recipe, machine, "floor", "--floor-only"))
    assert "stored" in found and RunStore(f"{RUNS}/floor-floor").has("floor/floor.json")
    command = [sys.executable, "-m", "services.cli.main", "train", str(recipe), "--set", "run.name=dry", "--dry-run"]
    subprocess.run(command, env=os.environ | {COPIES: str(machine)}, check=True, capture_output=True)
    left = [name for name in RunStore(RUNS).listing() if "dry" in name]
    assert left == []


def test_a_run_is_deleted_from_the_store(client: Any, whole: tuple[Path, str]) -> None:
    run = show_run("cut", runs_at(RUNS))
    assert delete_run(run, runs_at(RUNS)) == []
    assert not RunStore(f"{RUNS}/cut").is_there() and RunStore(f"{RUNS}/whole").is_there()
