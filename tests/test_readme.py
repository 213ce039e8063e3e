"""The README's own-data example, as written: manifest, record, recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import m2can
from trainers.preflight.preparation import prepare
from trainers.recipe import load_recipe

README = Path(__file__).parents[1] / "README.md"


def block(language: str, containing: str) -> str:
    """The README's code block in `language` that contains a text."""
    found = [
        b for b in re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.S) if containing in b
    ]
    assert len(found) == 1, f"{len(found)} blocks contain {containing!r}"
    return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's three domains: the README's manifest and record, and 20 more records like it."""
    record = json.loads(block("json", '"id": "r1"'))
    for name in ("reviews", "forum", "shop"):
        (tmp_path / name / "photos").mkdir(parents=True)
        manifest = block("yaml", "name: reviews").replace("name: reviews", f"name: {name}")
        (tmp_path / name / "manifest.yaml").write_text(manifest, encoding="utf-8")
        picture = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
        cv2.imwrite(str(tmp_path / name / record["image"][0]), picture)
        records = [record | {"id": f"r{n}", "label": ["negative", "neutral", "positive"][n % 3]} for n in range(1, 21)]
        if name == "shop":
            for unlabelled in records:
                del unlabelled["label"]
        for split in ("train", "val"):
            lines = "\n".join(json.dumps(r | {"id": f"{split}-{r['id']}"}) for r in records)
            (tmp_path / name / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(block("yaml", "sources: [reviews"), encoding="utf-8")
    return tmp_path


def test_own_data_example_prepares(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", ["train.epochs=5", "cluster.workers=2"])
    prepared = prepare(recipe)
    assert prepared.card.sources == ["reviews", "forum"]
    assert prepared.card.target == "shop"
    assert prepared.card.classes == ["negative", "neutral", "positive"]
    assert [len(part) for part in prepared.corpus.train] == [20, 20, 20]


@pytest.mark.slow
def test_python_example_runs(folder: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, object] = {}
    written = block("python", "m2can.train")
    shorter = written.replace('"train.seed": 1', '"train.epochs": 2')  # that it learns: tests/test_recipes_learn.py
    assert shorter != written
    exec(compile(shorter, str(README), "exec"), names)
    result = names["result"]
    assert isinstance(result, m2can.Result) and result.last_epoch == 2 and result.target == "shop"
