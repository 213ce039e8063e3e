"""The floor alone: found on Ray, registered, and predicted with like any model."""

from __future__ import annotations

from pathlib import Path

import pytest

import m2can
from tests.trainers.tiny_run import small_recipe
from trainers.training_run import Result, RunObserver, run


class Heard(RunObserver):
    floors: list[dict[str, float]]

    def __init__(self) -> None:
        self.floors = []

    def on_floor(self, metrics: dict[str, float]) -> None:
        self.floors.append(metrics)


@pytest.mark.slow
def test_the_floor_alone_is_registered_and_predicts(tmp_path: Path, ray_cluster: None) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    recipe = small_recipe(tmp_path, ["run.name=quick", f"tracking.uri={uri}", "tracking.enabled=true"])
    heard = Heard()
    result = run(recipe, observer=heard, floor_only=True)
    assert isinstance(result, Result) and result.floor is not None
    assert (result.run_name, result.chosen_epoch, result.last_epoch) == ("quick-floor", 0, 0)
    assert heard.floors == [result.floor.metrics]
    assert not list(result.folder.glob("checkpoint_*"))
    version = MlflowClient(uri).get_model_version(result.model_name, result.model_version)
    assert version.tags["m2can.floor"] == "chosen"
    metrics = MlflowClient(uri).get_run(result.run_id).data.metrics
    assert metrics["source/val/accuracy"] == result.floor.metrics["source/val/accuracy"]
    for place in (result.folder, result.folder / "floor"):  # the run, and the floor in it
        assert m2can.Predictor.load(place).predict(["a lovely day"]).labels[0] in recipe_classes(result)
    again = run(recipe, floor_only=True)
    assert again.model_version == result.model_version


def recipe_classes(result: Result) -> list[str]:
    return m2can.Predictor.load(result.checkpoint).classes
