"""Features that all trials of a sweep share: when, and that trials train on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.features.feature_files import FeatureFolder
from tests.trainers.tiny_run import make_loop
from tests.tuning.sweeps import write_sweep
from trainers.cluster.in_process import train_in_process, written_checkpoints
from trainers.encoders.weight_files import WEIGHTS
from trainers.journal.outcome import FloorResult, compare_floor
from trainers.model.trained_network import plain_weights
from trainers.predictor import Predictor
from trainers.preflight.preparation import prepare
from trainers.preflight.run_lock import require_free
from trainers.recipe import Recipe, load_recipe, make_recipe
from trainers.tracking.mlflow_compat import PARENT_TAG
from trainers.tracking.mlflow_run import open_client
from trainers.validators import ValidatorInputs
from tuning.driver import _claim, _require_own_name, run_sweep
from tuning.shared_features import FOLDER, share, why_not
from tuning.sweep import SweepPlan, load_sweep

FROZEN = ["encoders.text.freeze=all", "encoders.picture.freeze=all"]
GRID = {"algorithm": "grid", "space": {"uacr.start": {"choices": [0.2, 0.6]}}}
COMPARED = {"variants": {"plain": [], "other": ["sam.rho=0.05"]}, "seeds": [0]}


def plan(folder: Path, content: dict[str, Any], overrides: list[str]) -> SweepPlan:
    return load_sweep(write_sweep(folder, content, overrides))


@pytest.mark.parametrize(
    ("content", "overrides", "wanted"),
    [
        (GRID, FROZEN, None),
        (COMPARED, FROZEN, None),
        (GRID, FROZEN[:1], "encoders.picture.freeze is none"),
        (GRID | {"share_features": False}, FROZEN, "share_features is false"),
        (GRID, [*FROZEN, "encoders.features=/there"], "the recipe has its features, /there"),
        (COMPARED | {"seeds": [0, 1]}, FROZEN, "an encoder is random, and trials have different seeds"),
        (GRID | {"space": {"data.texts.word_dropout": {"choices": [0, 0.1]}}}, FROZEN,
         "trials differ in data.texts.word_dropout"),
        (GRID | {"space": {"data.samples_per_epoch": {"choices": [10, 20]}}}, FROZEN, None),
        (COMPARED | {"variants": {"a": [], "b": ["encoders.picture.batch_norm=frozen"]}}, FROZEN,
         "trials differ in encoders.picture.batch_norm"),
    ],
)  # fmt: skip
def test_which_sweeps_share_features(
    tmp_path: Path, content: dict[str, Any], overrides: list[str], wanted: str | None
) -> None:
    made = plan(tmp_path, content, overrides)
    assert why_not(made, made.recipe([])) == wanted


def test_features_that_the_recipe_names_are_shared_without_being_computed(tmp_path: Path) -> None:
    made = plan(tmp_path, GRID, [*FROZEN, "encoders.features=/there"])
    assert share(made, made.recipe([]), tmp_path) == (made, "those of the recipe, /there")
    other = COMPARED | {"variants": {"a": [], "b": ["encoders.features=null"]}}
    made = plan(tmp_path, other, [*FROZEN, "encoders.features=/there"])
    assert share(made, made.recipe([]), tmp_path) == (made, None)


def test_a_sweep_of_before_is_gone_on_with_as_it_was(tmp_path: Path) -> None:
    shared, alone = (plan(tmp_path, GRID | {"share_features": value}, FROZEN) for value in (True, False))
    _claim(shared, tmp_path)
    _require_own_name(shared, tmp_path)
    with pytest.raises(InputError, match=r"differs in share_features"):
        _require_own_name(alone, tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    del content["sweep"]["share_features"]
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    _require_own_name(alone, tmp_path)
    with pytest.raises(InputError, match=r"differs in share_features"):
        _require_own_name(shared, tmp_path)


@pytest.mark.slow
def test_a_sweep_on_shared_features_that_is_killed_goes_on_within_its_trials(tmp_path: Path, ray_cluster: None) -> None:
    epochs = 15
    overrides = [*FROZEN, "tracking.enabled=false", f"train.epochs={epochs}", "selection.gate=1"]
    made = plan(tmp_path, GRID | {"max_concurrent": 1}, overrides)
    command = [sys.executable, "-m", "services.cli.main", "tune", str(tmp_path / "sweep.yaml")]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    trials = tmp_path / "runs" / "trial" / "trials"
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(trials.glob("*/journal/epoch-00003.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    journals = trials.glob("*/journal/*.json")
    begun = {file: file.read_bytes() for file in journals if not file.parents[1].name.endswith("-floor")}
    assert 2 <= len(begun) < epochs and not list(trials.glob("*/trial.json"))
    (held,) = (file.parent for file in trials.glob("*/.driver.json"))
    while require_dead(held) is None:  # Ray ends the trial's process after its driver
        assert time.monotonic() < deadline
        time.sleep(0.1)

    outcome = run_sweep(made)
    assert [trial.status for trial in outcome.trials] == ["finished", "finished"]
    kept = [file.read_bytes() == content for file, content in sorted(begun.items())]
    assert all(kept[:-1])  # the last one's checkpoint may not have been written
    for trial in outcome.trials:
        tree = json.loads((trials / trial.name / "recipe.json").read_text())
        tree["run"] |= {"name": f"whole-{trial.name}", "storage": str(tmp_path / "runs")}
        whole = train_in_process(prepare(make_recipe(tree, "recipe")), torch.device("cpu"), floor=False)
        assert len(trial.records) == epochs
        for ours, theirs in zip(trial.records, whole.records, strict=True):
            names = [name for name in theirs.metrics if name.startswith(("loss/", "selection/", "target/", "uacr/"))]
            assert {name: ours.metrics[name] for name in names} == {name: theirs.metrics[name] for name in names}
    best = outcome.best
    assert best is not None and best.score == max(trial.score for trial in outcome.trials)
    reports = {
        trial.name: {path.name for path in (trials / trial.name / "report").iterdir()} for trial in outcome.trials
    }
    assert "report.html" in reports.pop(best.name) and list(reports.values()) == [{"summary.json"}]


def require_dead(folder: Path) -> bool | None:
    """None while the process that holds a run's folder lives."""
    try:
        require_free(folder)
    except InputError:
        return None
    return True


@pytest.mark.slow
def test_asha_ends_a_trial_on_shared_features_at_the_epoch_in_which_it_is_asked(
    tmp_path: Path, ray_cluster: None
) -> None:
    content = {"algorithm": "grid", "space": {"optimizer.lr.heads": {"choices": [1e-9, 1e-2]}}, "max_concurrent": 1,
               "asha": {"grace_epochs": 2, "reduction": 2}}  # fmt: skip
    outcome = run_sweep(plan(tmp_path, content, [*FROZEN, "tracking.enabled=false", "train.epochs=6"]))
    found = {trial.status: trial for trial in outcome.trials}
    assert set(found) == {"finished", "stopped"}
    assert len(found["finished"].records) == 6 and len(found["stopped"].records) == 2
    last = written_checkpoints(outcome.folder / "trials" / found["stopped"].name)[-1]
    assert last.epoch is None and last.step == 2 * 5 + 1  # five steps an epoch; it could go on


@pytest.mark.slow
def test_trials_train_on_features_that_are_computed_once(tmp_path: Path, ray_cluster: None) -> None:
    made = plan(tmp_path, GRID, [*FROZEN, "tracking.enabled=false", "train.epochs=1", "selection.gate=1"])
    outcome = run_sweep(made)
    folder = FeatureFolder(outcome.folder / FOLDER, "OUT")
    assert outcome.shared is not None and outcome.shared.startswith(folder.described())
    assert [trial.status for trial in outcome.trials] == ["finished", "finished"]
    for trial in outcome.trials:
        recipe = json.loads((outcome.folder / "trials" / trial.name / "recipe.json").read_text())
        assert recipe["encoders"]["features"] == str(outcome.folder / FOLDER)
    assert outcome.best_recipe is not None
    assert load_recipe(outcome.best_recipe).encoders.features is None  # it runs without the sweep's folder
    assert json.loads((outcome.report / "sweep.json").read_text())["shared_features"] == outcome.shared
    page, floor = outcome.report_page.read_text(), outcome.floor
    assert "shared by all trials" in page and floor is not None and "the best trial is preferred" in page
    told = json.loads((outcome.report / "sweep.json").read_text())["floor"]
    assert told == floor.numbers() and told["target_accuracy"] is not None and not told["chosen"]
    assert "the floor, without training: score" in outcome.table()
    thawed = [
        "encoders.text.freeze=none",
        "encoders.picture.freeze=none",
        f"train.start_from={outcome.folder / 'best'}",
    ]
    begun = prepare(load_recipe(outcome.best_recipe, [*thawed, "run.name=thawed"]))
    assert begun.start is not None and begun.start.epoch is None
    found, ours = plain_weights(outcome.folder / "best" / "model"), make_loop(begun).network.state_dict()
    assert begun.taken == {name: name for name in ours} and set(found) == set(ours)  # heads and encoders, all of them
    again = run_sweep(made)
    assert again.shared == folder.described()
    assert [trial.content for trial in again.trials] == [trial.content for trial in outcome.trials]


@pytest.mark.slow
def test_where_no_trial_is_better_the_floor_is_the_model_of_the_sweep(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prefers(recipe: Recipe, run: Path, epoch: ValidatorInputs) -> FloorResult | None:
        found = compare_floor(recipe, run, epoch)
        asked.append(found)
        return replace(found, chosen=True) if found else None

    monkeypatch.setattr("tuning.sweep_floor.compare_floor", prefers)
    outcome = run_sweep(plan(tmp_path, GRID, [*FROZEN, "train.epochs=1", "selection.gate=1"]))
    assert outcome.floor is not None and outcome.floor.chosen and len(asked) == 1
    weights = {
        (outcome.folder / "trials" / name / "floor" / "model" / WEIGHTS).read_bytes()
        for name in ("trial-floor", *(trial.name for trial in outcome.trials))
    }
    assert len(weights) == 1  # found once, and the first pseudo labels are its
    assert outcome.best is not None and "no trial is better than the floor" in outcome.report_page.read_text()
    assert outcome.registered is not None and outcome.tracking_uri is not None
    client = open_client(outcome.tracking_uri)
    (version,) = client.search_model_versions("name = 'm2can-mountain'")
    assert version.tags["m2can.run_name"] == "trial-floor" and version.tags["m2can.epoch"] == "0"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.tags[PARENT_TAG] == outcome.parent_run
    predicted = Predictor.load(outcome.floor.folder).predict(["a mountain above a lake"])  # of texts, not of features
    assert predicted.probs.shape == (1, 3) and np.allclose(predicted.probs.sum(1), 1)
