"""Checks before a job trains: every node reaches storage and data, MLflow answers, the cluster can hold the workers."""

from __future__ import annotations

import math
import os
import secrets
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets_manifest.errors import InputError, first_line, without_password
from datasets_manifest.files import made_folder, require_file, require_folder
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.catalog import is_reference
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from trainers.cluster.local_cluster import start_ray
from trainers.cluster.ray_compat import autoscaled_resources
from trainers.cluster.resources import worker_resources
from trainers.recipe import Recipe
from trainers.store.run_store import RunStore, require_store, store_told
from trainers.tracking.address import run_store, sqlite_file, tracking_uri
from trainers.tracking.mlflow_check import require_experiment

NODE_TIMEOUT_S = 60.0
MLFLOW_TIMEOUT_S = 60.0
_PICTURES_CHECKED = 8
_ROWS_LOOKED_AT = 1000  # the first of them may have no picture


def preflight(recipe: Recipe) -> list[str]:
    """Check everything a run needs, cheapest first.

    Returns:
        what was checked, as sentences.

    Raises:
        InputError: what is wrong, and where.
    """
    if recipe.tracking.enabled:
        check_mlflow(tracking_uri(recipe), recipe.tracking.experiment)
    samples = sample_files(recipe)
    start_ray(recipe.cluster.address)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    check_capacity(recipe, [node["Resources"] for node in nodes], autoscaled_resources())
    runs = run_store(recipe)
    check_nodes(runs or Path(recipe.run.storage), samples, [node["NodeID"] for node in nodes])
    return [
        f"{len(nodes)} node(s) read the data and write to {recipe.run.storage}",
        free_now(recipe, ray.cluster_resources(), ray.available_resources()),
        _of_mlflow(tracking_uri(recipe)) if recipe.tracking.enabled else "MLflow is off",
    ]


def _of_mlflow(uri: str) -> str:
    return f"MLflow's store is {uri}" if sqlite_file(uri) else f"MLflow answers at {without_password(uri)}"


def refuse_finished(recipe: Recipe) -> None:
    """Refuse the name of a run that has ended; an interrupted one is resumed."""
    name, runs = "report/summary.json", run_store(recipe)
    if runs is not None:
        summary = f"{runs / str(recipe.run.name)}/{name}"
        with store_told(runs):
            has_ended = storage.is_file(summary)
    else:
        summary = str(Path(recipe.run.storage) / str(recipe.run.name) / name)
        has_ended = Path(summary).is_file()
    if has_ended:
        problem = "a run of this name has ended"
        raise InputError(problem, file=summary, field="run.name", value=recipe.run.name, wanted="a new name")


def check_mlflow(uri: str, experiment: str, *, timeout_s: float = MLFLOW_TIMEOUT_S) -> None:
    """Look whether MLflow answers; a store that is not there yet is not made, but must be possible.

    Raises:
        InputError: MLflow does not answer in time, the experiment was deleted in it, or its file cannot be written.
    """
    if (file := sqlite_file(uri)) is not None:
        require_file(file, "tracking.uri")
    try:
        require_experiment(uri, experiment, timeout_s)
    except OSError as error:
        raise InputError(
            f"MLflow does not answer ({first_line(error)})",
            field="tracking.uri",
            value=without_password(uri),
            wanted="an address the cluster reaches, or tracking.enabled=false",
        ) from None


def sample_files(recipe: Recipe) -> list[str]:
    """Files that every node must be able to read: the manifests, and some pictures of each training split."""
    files = []
    for path in [*recipe.data.sources, recipe.data.target]:
        manifest = load_manifest(path)
        images = read_split(manifest, recipe.data.train_split).table["images"].slice(0, _ROWS_LOOKED_AT)
        pictures = [path for row in images.to_pylist() for path in row]
        if not is_reference(str(manifest.path)):  # a catalog's manifest comes with the code
            files.append(str(manifest.path))
        files += [p for p in pictures[:_PICTURES_CHECKED] if storage.is_file(p)]
    return files


def check_capacity(recipe: Recipe, nodes: list[dict[str, float]], autoscaled: dict[str, float]) -> None:
    """Check that the nodes, if they were idle, or the cluster at its largest could hold all workers.

    Args:
        autoscaled: resources of the cluster at its largest; empty without an autoscaler.

    Raises:
        InputError: they cannot; names what one worker needs and how many fit.
    """
    workers = recipe.cluster.fewest_workers
    gpus = max(sum(node.get("GPU", 0.0) for node in nodes), autoscaled.get("GPU", 0.0))
    on_gpu = recipe.cluster.device == "cuda" or (recipe.cluster.device == "auto" and gpus >= workers)
    needs = {"GPU": 1.0} if on_gpu else {}
    if recipe.cluster.cpus_per_worker:
        needs["CPU"] = recipe.cluster.cpus_per_worker
    if not needs:
        return

    def capacity(resources: dict[str, float]) -> int:
        return math.floor(min(resources.get(name, 0.0) / amount for name, amount in needs.items()) + 1e-9)

    fit = max(sum(map(capacity, nodes)), capacity(autoscaled))
    if fit < workers:
        each = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
        raise InputError(
            f"the cluster can never hold so many workers of {each} each",
            field="cluster.workers",
            value=workers,
            wanted=f"at most {fit}",
        )


def free_now(recipe: Recipe, total: dict[str, float], free: dict[str, float]) -> str:
    """Whether the workers, which the cluster can hold, find their resources free now or wait for others, as a sentence.

    Raises:
        InputError: the cluster lacks what the recipe asks for.
    """
    workers = recipe.cluster.fewest_workers
    each = {name: amount for name, amount in (worker_resources(recipe).resources_per_worker or {}).items() if amount}
    words = ", ".join(f"{free.get(name, 0.0):.3g} of {total.get(name, 0.0):.3g} {name}" for name in each)
    enough = all(free.get(name, 0.0) >= amount * workers for name, amount in each.items())
    wait = "" if enough else "; the run waits until others give back what it needs"
    sizes = ", ".join(f"{amount:.3g} {name}" for name, amount in each.items())
    return f"the cluster can hold {workers} worker(s) of {sizes} each; free now: {words}{wait}"


def check_nodes(folder: Path | RunStore, files: list[str], node_ids: list[str]) -> None:
    """Check, with a task on each node, that it reads `files` and shares the folder of runs, or their store, with the driver.

    Raises:
        InputError: a node that does not, and why.
    """
    token = secrets.token_hex(8)
    if isinstance(folder, RunStore):
        require_store(folder)
        _ask_nodes(folder, token, files, node_ids)
        return
    mark = folder / f".preflight-{token}"
    require_folder(folder, "run.storage")
    with made_folder(folder):
        try:
            write_mark(mark, token)
            _ask_nodes(mark, token, files, node_ids)
        finally:
            mark.unlink(missing_ok=True)


def write_mark(mark: Path, token: str) -> None:
    """Raises InputError: the folder of runs cannot be written."""
    try:
        mark.write_text(token)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise InputError(problem, field="run.storage", value=str(mark.parent)) from None


def _ask_nodes(mark: Path | RunStore, token: str, files: list[str], node_ids: list[str]) -> None:
    found: dict[str, Any] = {
        node: _check_node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            mark, token, files
        )
        for node in node_ids
    }
    done, _ = ray.wait(list(found.values()), num_returns=len(found), timeout=NODE_TIMEOUT_S)
    for node, reference in found.items():
        problem = ray.get(reference) if reference in done else f"no answer in {NODE_TIMEOUT_S:g} s"
        if problem:
            raise InputError(
                f"node {node[:12]}: {problem}",
                field="run.storage, data",
                wanted="storage and data that every node mounts at the same path",
            )


@ray.remote(num_cpus=0)
def _check_node(mark: Path | RunStore, token: str, files: list[str]) -> str | None:
    """What is wrong on this node, or None."""
    try:
        if isinstance(mark, RunStore):
            require_store(mark)
        else:
            if mark.read_text() != token:
                return f"{mark} holds something else: storage is not shared"
            answer = Path(f"{mark}-{os.getpid()}")
            answer.write_text(token)
            answer.unlink()
        for file in files:
            if not storage.is_file(file):
                return f"{file}: No such file"
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else first_line(error)
    return None
