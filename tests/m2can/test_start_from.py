"""`m2can.train(start_from=…)`."""

from __future__ import annotations

from pathlib import Path

import pytest

import m2can
from trainers.recipe import Recipe

DATA = {"data": {"sources": ["a.yaml"], "target": "b.yaml"}}


def test_start_from_is_the_recipes_key(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str | None] = []

    def run(recipe: Recipe, **_: object) -> None:
        given.append(recipe.train.start_from)

    monkeypatch.setattr("trainers.training_run.run", run)
    for start in ("first", Path("runs/first/best"), "m2can-sea@candidate", None):
        m2can.train(DATA, start_from=start, progress=False)
    assert given == ["first", "runs/first/best", "m2can-sea@candidate", None]
