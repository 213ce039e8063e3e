"""Working copies of a run in an object store: what is brought, what is sent, who works on it, what an error names."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.store_faults import described_store
from tests.object_store import object_store
from trainers.cluster.journal_callback import JournalCallback
from trainers.journal.journal import Journal
from trainers.preflight import run_lock
from trainers.preflight import store_lock as lock
from trainers.preflight.run_lock import LOCK_FILE, this_process
from trainers.preflight.stored_model import bring_model
from trainers.recipe import make_recipe
from trainers.store.run_store import COPIES, RunStore, require_store, store_of, store_told
from trainers.tracking.address import require_folder_of_runs, run_storage, tracking_uri

DATA = {"sources": ["a.yaml"], "target": "b.yaml"}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with object_store("runs") as client:
        yield client


@pytest.fixture
def run(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """A run of its own for each test, on the machine `here`."""
    on(tmp_path, "here", monkeypatch)
    return store_of(f"s3://runs/{tmp_path.name}/one")


def on(folder: Path, machine: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(COPIES, str(folder / machine))


def write(run: RunStore, files: dict[str, str]) -> None:
    for name, content in files.items():
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text(content)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


RUN = {
    "recipe.json": "{}",
    "journal/epoch-00001.json": "1",
    "report/summary.json": "{}",
    "report/report.html": "page",
    "logs/rank-0.log": "lines",
    "frozen.safetensors": "weights",
    "checkpoint_1/model/model.json": "{}",
    "checkpoint_1/model/model.safetensors": "weights",
    "checkpoint_1/files.json": "{}",
}


def test_another_machine_gets_what_is_small_and_weights_when_it_asks(
    run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, RUN | {"checkpoint_2/model/model.json": "{}"})  # whose files.json is not there: its writer was killed
    run.send(*os.listdir(run.folder))
    on(tmp_path, "there", monkeypatch)
    write(
        run,
        {"journal/epoch-00001.json": "an older one", "journal/epoch-00009.json": "not in the store", LOCK_FILE: "x"},
    )
    run.bring()
    big = {"logs/rank-0.log", "report/report.html", "frozen.safetensors", "checkpoint_1/model/model.safetensors"}
    assert names(run.folder) == set(RUN) - big | {LOCK_FILE}
    assert (run.folder / "journal/epoch-00001.json").read_text() == "1"
    folder = run.bring_checkpoint("checkpoint_1", "frozen.safetensors")
    assert (folder / "model" / "model.safetensors").read_text() == (folder.parent / "frozen.safetensors").read_text()
    assert [found.name for found in run.parent.runs()] == ["one"]
    run.delete()
    assert not run.is_there() and not run.folder.exists()
    assert run.parent.runs() == []


def test_what_is_there_already_is_not_brought_again(run: RunStore, client: Any) -> None:
    write(run, RUN)
    run.send("recipe.json")
    run.bring()
    before = (run.folder / "recipe.json").stat()
    run.bring()
    assert (run.folder / "recipe.json").stat().st_ino == before.st_ino
    client.put_object(Bucket="runs", Key=f"{run.uri.partition('runs/')[2]}/recipe.json", Body=b'{"a": 1}')
    run.bring()
    assert (run.folder / "recipe.json").read_text() == '{"a": 1}'


def test_of_a_checkpoint_files_json_is_sent_last(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, {f"checkpoint_1/{name}": "x" for name in ("files.json", "a/files.json", "a/b.bin", "z.bin")})
    sent: list[str] = []
    monkeypatch.setattr(RunStore, "put", lambda self, file, name: sent.append(name))
    run.send("checkpoint_1", "not there")
    assert sent[-1] == "checkpoint_1/files.json" and len(sent) == 4


def test_the_journal_is_in_the_store_with_each_epoch(run: RunStore, tmp_path: Path) -> None:
    callback = JournalCallback(tmp_path / "journal", run)
    callback.after_report(None, [{"epoch": 1, "step": 5, "loss/total": 0.5}], None)
    run.bring()
    assert [record.metrics for record in Journal(run.folder / "journal").read()] == [{"loss/total": 0.5}]


def test_one_command_at_a_time(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock.store_lock(run), pytest.raises(InputError, match="another command is at work on it: process"):
        lock.require_free_store(run)
    lock.require_free_store(run)
    for name, value in (("BEAT_S", 0.1), ("DEAD_AFTER_S", 0.5)):
        monkeypatch.setattr(run_lock, name, value)
    elsewhere, told = dataclasses.replace(this_process(), host="another-host"), []
    lock._write(run, elsewhere, 0)
    numbers = itertools.count(1)
    with (
        run_lock.heart(lambda: lock._beat(run, elsewhere, next(numbers))),
        pytest.raises(InputError, match=r"at work on it: process \d+ on another-host"),
    ):
        lock.require_free_store(run, told.append)
    assert "looking for 0.5 s" in told[0]
    with lock.store_lock(run):  # its heart has stopped
        assert lock._read(run)[0].host == this_process().host
    assert LOCK_FILE not in run.listing()


def test_a_lock_that_was_cut_off_holds_nothing(run: RunStore, client: Any) -> None:
    client.put_object(
        Bucket="runs", Key=f"{run.uri.partition('runs/')[2]}/{LOCK_FILE}", Body=json.dumps({"a": 1}).encode()
    )
    with lock.store_lock(run):
        pass


@pytest.mark.parametrize("place", ["hf://user/repository", "ftp://host/x", "s3://", "s3:///x"])
def test_addresses_that_are_no_place_for_runs(place: str) -> None:
    with pytest.raises(InputError, match="is no place where runs can lie"):
        run_storage(make_recipe({"data": DATA, "run": {"storage": place}}))


def test_recipes_in_a_store(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = make_recipe({"data": DATA, "run": {"storage": "s3://runs/some/../prefix/"}})
    assert run_storage(recipe) == RunStore("s3://runs/prefix").folder
    with pytest.raises(
        InputError, match=r"tracking\.uri: is not stated, nor MLFLOW_TRACKING_URI; beside runs in an object store"
    ):
        tracking_uri(recipe)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(recipe) == "http://mlflow:5000"
    with pytest.raises(InputError, match=r"run\.storage: is an object store, where a sweep cannot be kept"):
        require_folder_of_runs(recipe, "a sweep")


def test_an_error_names_bucket_endpoint_and_the_missing_variable(
    run: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_store(run)
    with pytest.raises(
        InputError, match=r"the store does not answer as it should .*bucket nobody at http://127\.0\.0\.1:"
    ):
        require_store(store_of("s3://nobody/x"))
    monkeypatch.setenv("HOME", str(run.folder))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InputError, match=r"bucket runs at http://127.*; AWS_ACCESS_KEY_ID is not set$"):
        require_store(run)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    words = "bucket b at Amazon's, as neither AWS_ENDPOINT_URL_S3 nor AWS_ENDPOINT_URL is set"
    assert described_store("s3://b/x") == f"{words}; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert described_store("s3://b/x") == words
    assert "its keys may not do that" in described_store("s3://b/x", OSError("AWS Error ACCESS_DENIED"))
    assert described_store("gs://b/x") == "bucket b"
    with pytest.raises(FileNotFoundError), store_told(run):
        (run.folder / "no such file").read_text()  # of this machine


def test_what_is_no_model_in_the_store(run: RunStore) -> None:
    for place in (run, run / "checkpoint_1"):
        with pytest.raises(InputError, match="there is no such run or checkpoint"):
            bring_model(place)
    write(run, {"recipe.json": "{}"})
    run.send("recipe.json")
    with pytest.raises(InputError, match="is a run that has not ended"):
        bring_model(run)
