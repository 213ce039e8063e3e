"""A SQLite store is whole or not there, wherever its making was cut off, and in a folder of any name."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.artifacts import download_artifacts
from sqlalchemy.engine import make_url

from datasets_manifest.errors import InputError
from tests.trainers.tracking.tracked import client, model_for, sender
from trainers.journal.journal import Journal
from trainers.recipe import make_recipe
from trainers.tracking import mlflow_check, sqlite_store
from trainers.tracking.address import resolve_tracking_uri, run_storage, sqlite_file, sqlite_uri
from trainers.tracking.mlflow_run import open_client, open_experiment
from trainers.tracking.sqlite_store import ensure_store

NAMES = ["My%20Project", "a b", "what?", "no#1", "'quoted\" \\", "Größe 漢字", "100%", "a&b=c;d", "x" * 200]
FIRST_TABLES = "CREATE TABLE experiments (experiment_id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(256) NOT NULL)"


@pytest.fixture
def copied(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new store is a copy of the session's: making one takes seconds."""

    def copy(uri: str, artifacts: str) -> None:
        shutil.copy(store / "mlflow.db", sqlite_file(uri) or "")

    monkeypatch.setattr(sqlite_store, "make_sqlite_store", copy)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("content", ["nothing", "first tables", "cut off"])
def test_a_half_made_store_is_moved_away_with_a_word(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture, store: Path
) -> None:
    file = tmp_path / "mlflow.db"
    if content == "nothing":
        file.touch()
    else:
        with sqlite3.connect(file) as database:
            database.execute(FIRST_TABLES)
        database.close()
    if content == "cut off":
        (tmp_path / "mlflow.db-journal").write_bytes(b"")
    (tmp_path / f".mlflow.db.{'0' * 32}").write_bytes(b"left by a killed command")
    ensure_store(file)
    assert file.read_bytes() == (store / "mlflow.db").read_bytes()
    assert "was left half made by a command that was killed; it is now mlflow.db.half-made-" in caplog.text
    names = sorted(path.name for path in tmp_path.iterdir() if "half-made" not in path.name)
    assert names == ["mlflow.db", "mlflow.db.lock"]
    caplog.clear()
    ensure_store(file)
    assert caplog.text == ""


def test_a_store_that_is_there_is_not_touched(store: Path) -> None:
    (store / "mlflow.db.lock").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    ensure_store(store / "mlflow.db")
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_a_locked_store_is_one_that_is_used(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(store / "mlflow.db", tmp_path)
    connect = sqlite3.connect
    monkeypatch.setattr(mlflow_check.sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.1}))
    holder = connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ensure_store(tmp_path / "mlflow.db")
    holder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_another_file_in_its_place_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("these are my notes\n" * 100)
    with pytest.raises(InputError, match=r"mlflow\.db: is no MLflow store"):
        ensure_store(file)
    assert file.read_text().startswith("these are my notes")


def _make(file: Path) -> None:
    os.setsid()
    ensure_store(file)


@pytest.mark.slow
def test_killed_at_ten_points_it_is_made_by_the_next_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    file, forked = tmp_path / "mlflow.db", multiprocessing.get_context("fork")
    for size in (0, 1, 60_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000, 500_000):
        maker = forked.Process(target=_make, args=(file,))
        maker.start()
        while maker.is_alive() and _largest(tmp_path) < size:
            time.sleep(0.001)
        os.kill(maker.pid or 0, signal.SIGKILL)
        maker.join()
        if file.exists():  # whole before the kill
            ensure_store(file)
            file.unlink()
    assert open_client(sqlite_uri(file)).get_experiment("0").name == "Default"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert caplog.text == ""


def _largest(folder: Path) -> int:
    try:
        return max((path.stat().st_size for path in folder.glob(".mlflow.db.*")), default=-1)
    except FileNotFoundError:  # a journal that was there a moment ago
        return -1


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_store_and_artifacts_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    storage = tmp_path / name / "runs"
    uri = resolve_tracking_uri(None, storage)
    opened = open_client(uri)
    experiment = open_experiment(uri, "of this test alone", storage)  # the copied store has experiments of others
    run = opened.create_run(experiment)
    (tmp_path / "note.txt").write_text("kept")
    opened.log_artifact(run.info.run_id, str(tmp_path / "note.txt"), "report")
    assert [item.path for item in opened.list_artifacts(run.info.run_id, "report")] == ["report/note.txt"]
    read = opened.download_artifacts(run.info.run_id, "report/note.txt", str(tmp_path))
    assert Path(read).read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "note.txt"])
    assert sorted(path.name for path in storage.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]


@pytest.mark.usefixtures("copied")
def test_a_model_is_registered_and_fetched_in_a_folder_of_any_name(tmp_path: Path) -> None:
    storage = tmp_path / "My%20Project, what? #1" / "runs"
    sending = sender(storage, Journal(storage / "run" / "journal"), "odd")
    tracked = sending.finish("FINISHED", model=model_for(tmp_path, "m2can-odd"))
    fetched = client(storage).get_model_version_download_uri("m2can-odd", str(tracked.model_version))
    assert (Path(download_artifacts(fetched)) / "files.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name != "bundle"] == ["My%20Project, what? #1"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=60))
def test_an_address_leads_to_its_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"x{name}" / "mlflow.db"
    uri = resolve_tracking_uri(None, file.parent)
    assert sqlite_file(uri) == file
    assert make_url(uri).database == str(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=60))
def test_a_folder_of_runs_is_taken_as_it_is_written_or_refused(tmp_path: Path, name: str) -> None:
    data = {"sources": ["a.yaml"], "target": "b.yaml"}
    recipe = make_recipe({"data": data, "run": {"storage": f"{tmp_path}/x{name}"}})
    try:
        assert str(run_storage(recipe)) == f"{tmp_path}/x{name}"
    except InputError as error:
        assert "run.storage" in str(error) and (not name.isprintable() or "://" in name)
