"""Sweeps for real: trials on Ray, runs in MLflow, a driver that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml

from tests.tuning.sweeps import plan_of
from trainers.recipe import load_recipe
from trainers.tracking.mlflow_compat import PARENT_TAG
from trainers.tracking.mlflow_run import open_client
from trainers.tracking.provenance import JOB_ID_VARIABLE
from tuning.driver import run_sweep

_GRID = {"algorithm": "grid", "space": {"optimizer.lr.encoders": {"choices": [1e-5, 2e-3]}}}


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_tracks_chooses_and_registers(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setenv(JOB_ID_VARIABLE, "tune-1")
    plan = plan_of(tmp_path, _GRID | {"max_concurrent": 1, "set": ["selection.gate=1", "train.epochs=1"]})
    command = [sys.executable, "-m", "services.cli.main", "tune", str(tmp_path / "sweep.yaml"), "--json"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    trials = tmp_path / "runs" / "trial" / "trials"
    first = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    ended = _wait_for(lambda: sorted(trials.glob("*/trial.json")), first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.read_bytes() for path in ended}
    assert len(before) == 1

    outcome = run_sweep(plan)
    assert {path: path.read_bytes() for path in before} == before
    assert [trial.status for trial in outcome.trials] == ["finished", "finished"]
    assert {trial.config["optimizer.lr.encoders"] for trial in outcome.trials} == {1e-5, 2e-3}
    assert outcome.best is not None and outcome.best.score == max(trial.score for trial in outcome.trials)

    stated = yaml.safe_load(outcome.best_recipe.read_text())
    # The sweep's recipe states all rates; of what it leaves to the preset nothing is stated.
    assert "network" not in stated and "encoders" in stated["optimizer"]["lr"]
    best = load_recipe(outcome.best_recipe)
    assert best.optimizer.lr.encoders == outcome.best.config["optimizer.lr.encoders"] and best.run.name is None

    client = open_client(outcome.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("m2can").experiment_id])
    nested = [run for run in runs if run.data.tags.get(PARENT_TAG) == outcome.parent_run]
    assert client.get_run(outcome.parent_run).data.tags["m2can.job"] == "tune-1"
    assert len(runs) == 4 and len(nested) == 3 and {run.info.status for run in runs} == {"FINISHED"}
    assert outcome.floor is not None and not outcome.floor.chosen  # encoders that start at random have no features yet
    assert f"{outcome.best.name}-floor" in {run.info.run_name for run in nested}
    versions = client.search_model_versions("name = 'm2can-mountain'")
    assert len(versions) == 1 and versions[0].tags["m2can.run_name"] == outcome.best.name
    names = {item.path for item in client.list_artifacts(outcome.parent_run, "report")}
    assert {"report/table.md", "report/parallel_coordinates.png"} <= names
    assert json.loads(json.dumps(outcome.to_dict()))["best"] == outcome.best.name

    again = run_sweep(plan)  # nothing is left to do, and nothing is done twice
    assert [trial.content for trial in again.trials] == [trial.content for trial in outcome.trials]
    assert len(client.search_model_versions("name = 'm2can-mountain'")) == 1


def _wait_for(found, process: subprocess.Popen, limit_s: float = 240) -> list[Path]:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        if paths := found():
            return paths
        time.sleep(0.2)
    raise AssertionError(f"no trial ended; the command's exit code: {process.poll()}")
