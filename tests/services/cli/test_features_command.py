"""`m2can features`: what it says, and that the recipe it names is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from services.cli.main import app
from tests.trainers.features.test_features import FROZEN, computed_here
from tests.trainers.tiny_run import small_recipe
from trainers.features import compute
from trainers.preflight.preparation import prepare
from trainers.recipe import load_recipe, stated_values


def test_the_command_computes_and_says_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str | None] = []
    monkeypatch.setattr(compute, "computed_on_ray", computed_here)
    monkeypatch.setattr("trainers.cluster.local_cluster.start_ray", started.append)
    recipe = tmp_path / "recipe.yaml"
    stated = stated_values(small_recipe(tmp_path, [*FROZEN, "data.texts.max_tokens=3"]))
    recipe.write_text(yaml.safe_dump(stated | {"encoders": stated["encoders"] | {"features": "out"}}))
    command = ["features", str(recipe), str(tmp_path / "out"), "--views", "1", "--address", "ray://there:1",
               "--set", "train.seed=1"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert started == ["ray://there:1"]
    assert "126 records, 0 lack some pictures" in result.output
    assert f"m2can train {recipe} --set train.seed=1 --set encoders.features={tmp_path / 'out'}" in result.output
    assert "have more than 3 tokens and are cut" in result.output
    notes = prepare(load_recipe(recipe)).notes  # its `features: out` is beside it
    assert any(note.startswith("trains on features: 126 records, the weak and 1 strong views") for note in notes)
    assert not any("are cut" in note for note in notes)  # it was said once
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (again["records"], again["resumed"], again["strong_views"]) == (126, 126, 1)
    assert len(started) == 1
