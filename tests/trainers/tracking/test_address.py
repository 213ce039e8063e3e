"""Where runs and MLflow are."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets_manifest.errors import InputError, without_password
from trainers.recipe import Recipe, make_recipe
from trainers.tracking.address import resolve_tracking_uri, run_storage, tracking_uri


def recipe_in(storage: str) -> Recipe:
    return make_recipe({"data": {"sources": ["a"], "target": "b"}, "run": {"storage": storage}})


@pytest.mark.parametrize("storage", ["hf://user/repository", "s3://", "file:///runs"])
def test_an_address_where_no_runs_can_lie_is_refused(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    wanted = r"run\.storage: is no place where runs can lie; found '.*'; wanted a folder, or s3://bucket/… or gs://"
    with pytest.raises(InputError, match=wanted):
        run_storage(recipe_in(storage))
    assert not list(tmp_path.iterdir())


def test_the_first_address_that_is_stated_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_storage(recipe_in("runs")) == tmp_path / "runs"
    assert tracking_uri(recipe_in("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(recipe_in("runs")) == "http://mlflow:5000"
    assert resolve_tracking_uri("postgresql+psycopg2://db/m2can", tmp_path) == "postgresql+psycopg2://db/m2can"
    with pytest.raises(InputError, match=r"tracking\.uri: is no address MLflow can track to"):
        resolve_tracking_uri("file:///mlruns", tmp_path)


def test_passwords_are_not_shown() -> None:
    assert without_password("cannot reach postgresql://me:secret@db/x, http://db/x") == (
        "cannot reach postgresql://***@db/x, http://db/x"
    )
