"""Runs: what lies in the storage folder and in MLflow of each, and how all of it is removed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError, first_line, nearest
from services.errors import ServiceUnavailable
from services.registry import versions_of_run
from trainers.journal.journal import Journal
from trainers.preflight.run_lock import require_free
from trainers.preflight.store_lock import require_free_store
from trainers.store import is_store
from trainers.store.run_store import RECIPE, RunStore, store_of, store_told
from trainers.tracking.mlflow_run import RUN_NAME_TAG
from trainers.tracking.registered_models import ModelVersion, client_for
from trainers.tracking.registration import ALIAS

SUMMARY = Path("report") / "summary.json"
Storage = Path | RunStore


@dataclass(frozen=True)
class RunInfo:
    """One run.

    state: `finished`, or `unfinished`: it was stopped, failed, or still goes on.
    epochs: done, and asked for. started: when its folder got its recipe. bytes: of the folder, if it was asked for.
    target_accuracy: of the chosen epoch, 0 to 1; None without labels or before the end.
    models: its versions in the registry. run_ids: of its MLflow runs that are not deleted.
    stored: where it lies in an object store; `folder` is then this machine's copy of what is small.
    """

    name: str
    folder: Path
    state: str
    started: str
    epochs: tuple[int, int]
    sources: list[str]
    target: str
    chosen_epoch: int | None = None
    target_accuracy: float | None = None
    bytes: int | None = None
    models: list[ModelVersion] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    stored: str | None = None


def runs_at(storage: str) -> Storage:
    """A folder of runs, or the object store that an address (`s3://…`) names. Raises InputError: an address of another kind."""
    return store_of(storage, "read", "--storage") if is_store(storage) else Path(storage)


def list_runs(storage: Storage) -> list[RunInfo]:
    """All runs of a storage folder, newest first; a sweep's trials are not among them. MLflow is not asked.

    Raises:
        InputError: no such folder, or the store does not answer.
    """
    if isinstance(storage, RunStore):
        with store_told(storage, "--storage"):
            if not storage.is_there():
                problem, wanted = "there is no such folder in the store", "the address of the folder of runs"
                raise InputError(problem, field="--storage", value=str(storage), wanted=wanted)
            stored = [replace(_info(run.folder), stored=run.uri) for run in storage.runs()]
        return sorted(stored, key=lambda run: (run.started, run.name), reverse=True)
    if not storage.is_dir():
        raise InputError("there is no such folder", file=storage, field="--storage", wanted="the folder of runs")
    found = [_info(folder) for folder in storage.iterdir() if (folder / RECIPE).is_file()]
    return sorted(found, key=lambda run: (run.started, run.name), reverse=True)


def show_run(name: str, storage: Storage, tracking_uri: str | None = None) -> RunInfo:
    """One run with its size and what MLflow has of it; without MLflow's store, what lies in the folder.

    Args:
        name: of the run, or its folder.

    Raises:
        InputError: no such run.
        ServiceUnavailable: MLflow does not answer.
    """
    if isinstance(storage, RunStore) or is_store(name):
        info, size, storage = _stored_run(name, storage)
        folder = info.folder
    else:
        folder = _folder(name, storage)
        info = _info(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    client = _client(folder, storage, tracking_uri)
    if client is None:
        return replace(info, bytes=size)
    try:
        runs = _runs_named(client, info.name, info.stored or folder)
        models = [version for run in runs for version in versions_of_run(client, run.info.run_id)]
    except MlflowException as error:
        raise ServiceUnavailable(f"MLflow does not say what it has of {info.name}: {first_line(error)}") from error
    return replace(info, bytes=size, models=models, run_ids=[run.info.run_id for run in runs])


def require_deletable(run: RunInfo) -> None:
    """Raises InputError: a command works on the run, or an alias other than `candidate` points at a model of it."""
    if run.stored is not None:
        require_free_store(RunStore(run.stored))
    else:
        require_free(run.folder, "NAME")
    for version in run.models:
        used = [alias for alias in version.aliases if alias != ALIAS]
        if used:
            raise InputError(
                f"its model {version.name}:{version.version} is in use",
                field="NAME",
                value=", ".join(f"@{alias}" for alias in used),
                wanted="another version promoted to it first",
            )


def delete_run(run: RunInfo, storage: Storage, tracking_uri: str | None = None) -> list[str]:
    """Remove the run's model versions, MLflow runs, artifacts and folder.

    MLflow keeps a deleted run's numbers until `mlflow gc`. Artifacts are removed where this machine sees them as files.

    Args:
        run: as `show_run` found it.

    Returns:
        what could not be removed from here, as sentences.

    Raises:
        InputError: see require_deletable.
    """
    require_deletable(run)
    left: list[str] = []
    client = _client(run.folder, storage if isinstance(storage, Path) else storage.folder, tracking_uri)
    if client is not None:
        for version in run.models:
            _delete_version(client, version)
        for run_id in run.run_ids:
            left += _delete_tracked(client, run_id)
    if run.stored is not None:
        store = RunStore(run.stored, "read")
        with store_told(store, "NAME"):
            store.delete()
    else:
        shutil.rmtree(run.folder)
    return left


def _stored_run(name: str, storage: Storage) -> tuple[RunInfo, int, Path]:
    """A run in an object store, its bytes there, and the folder of the runs' copies. `name`: in `storage`, or its address."""
    run = store_of(name, "read", "NAME") if is_store(name) or isinstance(storage, Path) else storage / name
    with store_told(run, "NAME"):
        there = run.listing()
        if RECIPE not in there:
            close = nearest(run.name, [other.name for other in run.parent.runs()])
            wanted = "one that `m2can runs list` shows" + (f" (nearest: {close})" if close else "")
            raise InputError("there is no such run", field="NAME", value=name, wanted=wanted)
        run.bring()
    size = sum(info.size for info in there.values())
    return replace(_info(run.folder), stored=run.uri), size, run.parent.folder


def _info(folder: Path) -> RunInfo:
    recipe = _json(folder / RECIPE)
    data, summary = recipe.get("data", {}), _json(folder / SUMMARY)
    records = Journal(folder / "journal").read()
    done = records[-1].epoch if records else 0  # those of a run whose training it goes on with count
    began = datetime.fromtimestamp((folder / RECIPE).stat().st_mtime, UTC)
    return RunInfo(
        name=folder.name,
        folder=folder,
        state="finished" if summary else "unfinished",
        started=began.isoformat(timespec="seconds"),
        epochs=(done, int(recipe.get("train", {}).get("epochs") or 0)),
        sources=[_domain(path) for path in data.get("sources", [])],
        target=_domain(data.get("target", "")),
        chosen_epoch=summary.get("chosen_epoch"),
        target_accuracy=summary.get("target_accuracy_chosen"),
    )


def _json(file: Path) -> dict[str, Any]:
    """A file that is absent or cannot be read must not hide the other runs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _domain(manifest: str) -> str:
    """A manifest's place in short: its folder's name, or its own where it is not called manifest."""
    path = Path(manifest)
    return path.parent.name if path.stem == "manifest" and path.parent.name else path.stem or manifest


def _folder(name: str, storage: Path) -> Path:
    for folder in (storage / name, Path(name)):
        if (folder / RECIPE).is_file():
            return folder
    known = [run.name for run in list_runs(storage)]
    close = nearest(name, known)
    wanted = "one that `m2can runs list` shows" + (f" (nearest: {close})" if close else "")
    raise InputError("there is no such run", field="NAME", value=name, wanted=wanted)


def _client(folder: Path, storage: Path, tracking_uri: str | None) -> MlflowClient | None:
    """Of the address given, the one that the run's recipe states, or the usual one; None if there is no local store."""
    uri = tracking_uri or _json(folder / RECIPE).get("tracking", {}).get("uri")
    try:
        return client_for(uri, storage)
    except InputError:
        if uri is not None:
            raise
        return None


def _runs_named(client: MlflowClient, name: str, folder: Path | str) -> list[Run]:
    """The MLflow runs of the run in `folder`, or at this address. Another storage folder may have one of the same name."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{RUN_NAME_TAG}` = '{name}'")
    places = (None, str(folder), str(folder.resolve()) if isinstance(folder, Path) else None)
    return [run for run in found if run.data.tags.get("m2can.folder") in places]


def _delete_version(client: MlflowClient, version: ModelVersion) -> None:
    for alias in version.aliases:
        client.delete_registered_model_alias(version.name, alias)
    client.delete_model_version(version.name, version.version)
    if not client.search_model_versions(f"name = '{version.name}'", max_results=1):
        client.delete_registered_model(version.name)


def _delete_tracked(client: MlflowClient, run_id: str) -> list[str]:
    """Delete an MLflow run with its logged models and the artifacts of both."""
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    places = [run.info.artifact_uri, *(model.artifact_location for model in models)]
    for model in models:
        client.delete_logged_model(model.model_id)
    client.delete_run(run_id)
    left = []
    for place in filter(None, places):
        parts = urlparse(place)
        if parts.scheme in ("", "file"):
            shutil.rmtree(Path(unquote(parts.path)), ignore_errors=True)
        else:
            left.append(f"{place} stays until `mlflow gc` is run where MLflow's server is")
    return left
