"""The floor as a model: found alone, or preferred to what was trained; registered, and predicted with like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

import m2can
from services.model_files import model_files
from tests.trainers.tiny_run import small_recipe
from trainers.journal import outcome
from trainers.run_result import Result
from trainers.training_run import RunObserver, run
from trainers.validators.floor import Comparison


class Heard(RunObserver):
    def __init__(self) -> None:
        self.floors: list[dict[str, float]] = []

    def on_floor(self, metrics: dict[str, float]) -> None:
        self.floors.append(metrics)


def registered(result: Result, uri: str) -> tuple[dict[str, str], m2can.Predictor]:
    """The version's tags, and its model as the registry gives it."""
    from mlflow import MlflowClient

    assert result.model_name is not None and result.model_version is not None
    version = MlflowClient(uri).get_model_version(result.model_name, result.model_version)
    folder = model_files(f"{result.model_name}:{result.model_version}", uri, result.folder.parent)
    return version.tags, m2can.Predictor.load(folder)


@pytest.mark.slow
def test_the_floor_is_a_model(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    recipe = small_recipe(tmp_path, ["run.name=quick", f"tracking.uri={uri}", "train.epochs=1"])
    heard = Heard()
    alone = run(recipe, observer=heard, floor_only=True)
    assert alone.floor is not None and heard.floors == [alone.floor.metrics]
    assert (alone.run_name, alone.chosen_epoch, alone.last_epoch) == ("quick-floor", 0, 0)
    assert not list(alone.folder.glob("checkpoint_*"))
    metrics = MlflowClient(uri).get_run(str(alone.run_id)).data.metrics
    assert metrics["source/val/accuracy"] == alone.floor.metrics["source/val/accuracy"]

    monkeypatch.setattr(outcome, "compare_with_floor", lambda *_: Comparison(True, 0.5))
    monkeypatch.setattr(outcome, "what_is_trained", lambda _: "heads on frozen encoders")
    trained = run(recipe)
    assert (trained.run_name, trained.chosen_epoch, trained.last_epoch) == ("quick", 0, 1)
    assert (trained.folder / "best").resolve() == (trained.folder / "floor").resolve()
    same = ("source/val/accuracy", "target/val/accuracy")
    assert trained.floor is not None
    assert [trained.floor.metrics[name] for name in same] == [alone.floor.metrics[name] for name in same]

    said = [m2can.Predictor.load(place).predict(["a lovely day"]).probs for place in (alone.folder, trained.folder)]
    for result, warnings in ((alone, None), (trained, "floor")):
        tags, predictor = registered(result, uri)
        assert tags["m2can.floor"] == "chosen" and tags.get("m2can.warnings", "").split(",")[0] == (warnings or "")
        said.append(predictor.predict(["a lovely day"]).probs)
    assert all(probs == pytest.approx(said[0], abs=1e-6) for probs in said)
