"""`m2can runs`: a run's folder, MLflow run, model versions and artifacts are shown together, and removed together."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from services import runs
from services.cli.main import main
from services.registry import search_models
from tests.trainers.tracking.tracked import client, model_for, record, sender
from trainers.journal.journal import Journal
from trainers.preflight.run_lock import driver_lock

MODEL = "m2can-mountain"


def make_run(storage: Path, name: str, epochs: int = 2, ended: bool = True) -> Path:
    """What a run leaves in its folder, as far as it is looked at."""
    folder = storage / name
    journal = Journal(folder / "journal")
    for epoch in range(1, epochs + 1):
        journal.append(record(epoch))
    data = {"sources": ["/d/city/manifest.yaml", "/d/sea.yaml"], "target": "/d/mountain/manifest.yaml"}
    (folder / "recipe.json").write_text(json.dumps({"data": data, "train": {"epochs": 3}}))
    (folder / "checkpoint_1").mkdir()
    (folder / "checkpoint_1" / "model.safetensors").write_bytes(b"0" * 1000)
    if ended:
        (folder / "report").mkdir()
        (folder / "report" / "summary.json").write_text('{"chosen_epoch": 2, "target_accuracy_chosen": 0.75}')
    return folder


def track(storage: Path, name: str, place: Path) -> Any:
    folder = storage / name
    return sender(storage, Journal(folder / "journal"), name).finish(
        "FINISHED", artifacts=folder / "report", model=model_for(place, MODEL)
    )


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["m2can", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_runs_are_listed_newest_first_without_mlflow(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, (name, epochs, ended) in enumerate((("last", 1, False), ("first", 3, True))):
        folder = make_run(storage, name, epochs, ended)
        os.utime(folder / "recipe.json", (1_700_000_000 - 100 * age,) * 2)
    (storage / "mlartifacts").mkdir()
    (storage / "sweep" / "trials" / "one").mkdir(parents=True)
    found = runs.list_runs(storage)
    assert [(run.name, run.state, run.epochs) for run in found] == [
        ("last", "unfinished", (1, 3)), ("first", "finished", (3, 3)),
    ]  # fmt: skip
    assert (found[1].sources, found[1].target, found[1].target_accuracy) == (["city", "sea"], "mountain", 0.75)
    assert command(monkeypatch, "runs", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("first") and "epoch 3/3  city + sea → mountain  target accuracy 75.0 %" in lines[1]
    assert runs.show_run("first", storage).models == []  # there is no store
    with pytest.raises(InputError, match=r"no such run; found 'firsts'.*nearest: first"):
        runs.show_run("firsts", storage)


def test_a_run_is_removed_with_all_that_belongs_to_it_and_nothing_else(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = {name: (make_run(storage, name), track(storage, name, tmp_path))[1] for name in ("one", "two")}
    there = client(storage)
    run = runs.show_run("two", storage)
    assert (run.run_ids, [version.version for version in run.models]) == ([tracked["two"].run_id], ["2"])
    assert run.bytes and run.bytes > 1000
    files = {path for path in (storage / "mlartifacts").rglob("*") if path.is_file()}
    other = there.get_run(tracked["one"].run_id).info.artifact_uri.removeprefix("file://")

    there.set_registered_model_alias(MODEL, "champion", "2")
    assert command(monkeypatch, "runs", "delete", "two", "--yes") == 2
    assert "its model m2can-mountain:2 is in use; found '@champion'" in capsys.readouterr().err
    there.delete_registered_model_alias(MODEL, "champion")
    with driver_lock(run.folder), pytest.raises(InputError, match="NAME"):
        runs.require_deletable(run)

    assert command(monkeypatch, "runs", "delete", "two") == 2
    shown = capsys.readouterr().err
    assert f"folder           {run.folder}" in shown or "folder           runs/two" in shown
    assert f"MLflow run       {tracked['two'].run_id}" in shown and f"{MODEL}:2 @candidate" in shown
    assert "--yes: nobody can be asked here" in shown and (storage / "two").is_dir()

    assert command(monkeypatch, "runs", "delete", "two", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "two", "deleted": True, "left": []}
    assert not (storage / "two").exists() and (storage / "one").is_dir()
    assert there.get_run(tracked["two"].run_id).info.lifecycle_stage == "deleted"
    assert there.get_run(tracked["one"].run_id).info.lifecycle_stage == "active"
    assert [(version.name, version.version) for version in search_models(there)] == [(MODEL, "1")]
    left = {path for path in (storage / "mlartifacts").rglob("*") if path.is_file()}
    assert left and len(left) == len(files) / 2 and (Path(other) / "report" / "summary.json") in left

    assert command(monkeypatch, "runs", "delete", "one", "--yes") == 0
    assert search_models(there) == [] and not [path for path in (storage / "mlartifacts").rglob("*") if path.is_file()]
    assert runs.list_runs(storage) == []
