"""What the control plane is set up with, and how a body of JSON becomes a job within these bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow import MlflowClient

from datasets_manifest.errors import InputError
from services.api.guard import AuditLog, RateLimit, confine, confine_path
from services.jobs import job_request, jobs
from services.jobs.job_request import JobRequest, place
from services.jobs.sweep_request import read_plan, recipes_of, tune_request
from services.web.http import Tokens
from trainers.recipe.recipe import Recipe, make_recipe
from trainers.tracking.provenance import environment


class JobServer(Protocol):
    """What the API needs of the cluster; RayJobs below, and one in memory in the tests."""

    def submit(self, request: JobRequest, metadata: dict[str, str]) -> jobs.Job: ...
    def list(self) -> list[jobs.Job]: ...
    def find(self, identity: str) -> jobs.Job | None: ...
    def logs(self, identity: str) -> str: ...
    def follow(self, identity: str) -> AsyncIterator[str]: ...
    def stop(self, identity: str) -> jobs.Job: ...
    def delete(self, identity: str) -> None: ...


class RayJobs:
    """Ray's job server, connected to when it is needed: the cluster may come later than the API, and go before it."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def submit(self, request: JobRequest, metadata: dict[str, str]) -> jobs.Job:
        return jobs.submit(jobs.connect(self._address), request, metadata=metadata)

    def list(self) -> list[jobs.Job]:
        return jobs.list_jobs(jobs.connect(self._address))

    def find(self, identity: str) -> jobs.Job | None:
        return next((job for job in self.list() if job.id == identity), None)

    def logs(self, identity: str) -> str:
        return jobs.logs(jobs.connect(self._address), identity)

    def follow(self, identity: str) -> AsyncIterator[str]:
        return jobs.follow(jobs.connect(self._address), identity)

    def stop(self, identity: str) -> jobs.Job:
        return jobs.stop(jobs.connect(self._address), identity)

    def delete(self, identity: str) -> None:
        jobs.delete(jobs.connect(self._address), identity)


@dataclass(frozen=True)
class ApiConfig:
    """roots: folders below which data and runs of submitted recipes must lie. storage: where runs go by default."""

    jobs: JobServer
    registry: Callable[[], MlflowClient]
    tracking_uri: str
    tokens: Tokens
    roots: list[Path]
    storage: Path
    audit: AuditLog
    rate: RateLimit


def train_request(identity: str, tree: dict[str, Any], config: ApiConfig) -> JobRequest:
    """Raises InputError: no recipe, or it reaches out of bounds."""
    recipe = make_recipe(_with_storage(tree, config), "recipe")
    _confine(recipe, config)
    tracked = recipe.tracking.model_copy(update={"uri": config.tracking_uri})
    return job_request.train_request(identity, recipe.model_copy(update={"tracking": tracked}), environment())


def sweep_request(identity: str, sweep: dict[str, Any], recipe: dict[str, Any], config: ApiConfig) -> JobRequest:
    """Raises InputError: no sweep, or one of its recipes is not valid or reaches out of bounds."""
    if "recipe" in sweep:
        raise InputError("is given beside the sweep", field="sweep.recipe", wanted="the field recipe")
    content = {**sweep, "recipe": _with_storage(recipe, config)}
    JobRequest(id=identity, kind="tune", content=content).encoded()  # too long is told before all of it is tried
    plan = read_plan(content)
    for one in recipes_of(plan):
        _confine(one, config)
    return tune_request(identity, plan, environment(), config.tracking_uri)


def check_request(identity: str, manifests: list[str], config: ApiConfig) -> JobRequest:
    """Raises InputError: a path that is not absolute or leads out of bounds."""
    paths = [confine_path(f"manifests.{n}", path, config.roots) for n, path in enumerate(manifests)]
    return JobRequest(id=identity, kind="data-check", content={"manifests": paths})


def _with_storage(tree: dict[str, Any], config: ApiConfig) -> dict[str, Any]:
    run = tree.get("run")
    if run is not None and not isinstance(run, dict):
        return tree
    return {**tree, "run": {"storage": str(config.storage), **(run or {})}}


def _confine(recipe: Recipe, config: ApiConfig) -> None:
    """As it was sent, and as it travels: a name may turn out to be a folder of this machine."""
    for one in (recipe, place(recipe)):
        confine(one, config.roots, config.tracking_uri)
