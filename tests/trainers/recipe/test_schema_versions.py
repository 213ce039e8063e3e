"""Recipes of other versions: migrated, or refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from trainers.recipe import loading, make_recipe
from trainers.recipe.schema_versions import migrate

OLD = {"schema_version": 1, "data": {"sources": ["a"], "target": "b"}, "train": {"rounds": 7}}


def rounds_are_epochs(tree: dict[str, Any]) -> None:
    tree["train"]["epochs"] = tree["train"].pop("rounds")


def test_an_older_recipe_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(loading, "MIGRATIONS", {1: rounds_are_epochs})  # 2 has the form of 3
    given = copy.deepcopy(OLD)
    made = make_recipe(given)
    assert (made.schema_version, made.train.epochs) == (3, 7)
    assert given == OLD


def test_an_older_recipe_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(loading, "MIGRATIONS", {1: "rounds had no fixed length"})
    with pytest.raises(
        InputError, match=r"old\.yaml: schema_version: version 1 .* rounds had no fixed length; found 1"
    ):
        make_recipe(OLD, "old.yaml")


@pytest.mark.parametrize(
    ("version", "words"),
    [(3, "newer version of m2can, with schema version 3; found 3; wanted at most 2"), (0, "is not a version"),
     ("1", "is not a version"), (True, "is not a version"), (None, "is not a version")],
)  # fmt: skip
def test_other_versions_are_refused(version: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_recipe({"data": OLD["data"], "schema_version": version})


def test_a_recipe_without_a_version_has_todays() -> None:
    assert make_recipe({"data": OLD["data"]}).schema_version == loading.SCHEMA_VERSION


def test_migrations_follow_one_another() -> None:
    passed: list[int] = []
    steps = {version: lambda _, v=version: passed.append(v) for version in (1, 2, 3)}
    assert migrate({"schema_version": 2}, current=4, migrations=steps) == {"schema_version": 4}
    assert passed == [2, 3]
