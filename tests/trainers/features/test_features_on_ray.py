"""Features that Ray Data computed, and two of Ray Train's workers on them: the losses of one process that runs the encoders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers.features.test_features import EXACT, square_recipe
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.cluster.driver import train
from trainers.features.compute import compute_features
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import prepare


@pytest.mark.slow
def test_two_workers_on_features_give_the_losses_of_the_frozen_encoders(tmp_path: Path, ray_cluster: None) -> None:
    recipe, out = square_recipe(tmp_path), tmp_path / "out"
    done: list[int] = []
    summary = compute_features(recipe, out, on_rows=lambda rows, total: done.append(rows))
    assert (summary.records, summary.resumed, done) == (126, 0, [0, 126])
    two = [*EXACT, f"encoders.features={out}", "cluster.workers=2", "run.name=two"]
    outcome = train(prepare(small_recipe(tmp_path, two)))
    loop = make_loop(prepare(recipe))
    for record in outcome.records:
        metrics, _ = loop.run_epoch()
        names = [name for name in metrics if name.startswith(("loss/", "selection/", "target/val/", "source/val/"))]
        assert {"loss/total", "loss/cmcfa", "selection/score", "target/val/accuracy"} < set(names)
        for name in names:
            assert record.metrics[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-9), (record.epoch, name)
    assert len(outcome.records) == 2
    target = loop.corpus.val[-1]
    assert target is not None
    raw = loop.corpus.table.slice(target.start, len(target))
    found = Predictor.load(outcome.checkpoint).predict(raw["texts"].to_pylist(), raw["images"].to_pylist())
    right = [loop.corpus.classes[label] for label in raw["label"].to_pylist()]
    accuracy = sum(a == b for a, b in zip(found.labels, right, strict=True)) / len(right)
    assert accuracy == pytest.approx(outcome.chosen.metrics["target/val/accuracy"])
