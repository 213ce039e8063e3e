"""Small sweeps for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.trainers.tiny_run import small_recipe
from trainers.journal.journal import EpochRecord
from tuning.sweep import SweepPlan, load_sweep
from tuning.trial_results import Trial


def write_sweep(folder: Path, content: dict[str, Any], overrides: list[str] | None = None) -> Path:
    """A sweep file beside a small recipe."""
    recipe = small_recipe(folder, ["train.epochs=2", "sam.rho=0", *(overrides or [])])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "trial", "recipe": "recipe.yaml", **content}), encoding="utf-8")
    return file


def plan_of(folder: Path, content: dict[str, Any]) -> SweepPlan:
    return load_sweep(write_sweep(folder, content))


def finished(name: str, config: dict[str, Any], score: float, **told: Any) -> Trial:
    """A trial that has come to its end."""
    records = [EpochRecord(epoch, 10 * epoch, 0.0, {"selection/score": score * epoch / 2}) for epoch in (1, 2)]
    content = {"score": score, "epochs": 2, "overrides": [], "config": config, **told}
    return Trial(name, "finished", config, records, content)
