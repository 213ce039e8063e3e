"""The control plane's settings, and how the JSON body of a request becomes a job within them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from datasets_manifest.errors import InputError
from services.api.audit import AuditLog
from services.api.path_policy import confine, confine_path
from services.jobs import job_request
from services.jobs.job_request import JobRequest, with_absolute_paths
from services.jobs.jobs import JobServer
from services.jobs.sweep_request import read_plan, recipes_of, tune_request
from services.web.auth import Caller, Tokens
from services.web.rate_limit import RateLimit
from trainers.recipe import Recipe, make_recipe
from trainers.tracking.provenance import environment
from tuning.sweep import Choices, Sweep

MOST_TRIALS = 1000  # of a sweep
MOST_CHOICES = 200  # listed in its space, and variants; each is checked as a recipe


@dataclass(frozen=True)
class ApiConfig:
    """Settings of the control plane.

    roots: folders in which data and runs of submitted recipes must be. storage: folder of runs by default.
    most_jobs: of one caller that wait or run. allowed_hosts: names beside the loopback's that a service without tokens
    answers to.
    """

    jobs: JobServer
    registry: Callable[[], MlflowClient]
    tracking_uri: str
    tokens: Tokens
    roots: list[Path]
    storage: Path
    audit: AuditLog
    rate: RateLimit
    most_jobs: int = 8
    allowed_hosts: tuple[str, ...] = ()


def train_request(identity: str, tree: dict[str, Any], config: ApiConfig, caller: Caller) -> JobRequest:
    """Raises InputError: not a recipe, a path of it leads outside of the roots, or it registers another's model."""
    recipe = make_recipe(_with_storage(tree, config), "recipe")
    _confine(recipe, config, caller)
    tracked = recipe.tracking.model_copy(update={"uri": config.tracking_uri})
    return job_request.train_request(identity, recipe.model_copy(update={"tracking": tracked}), environment())


def sweep_request(
    identity: str, sweep: dict[str, Any], recipe: dict[str, Any], config: ApiConfig, caller: Caller
) -> JobRequest:
    """Raises InputError: not a sweep, one that is too large, or one of its recipes is not right; see `train_request`."""
    if "recipe" in sweep:
        raise InputError("is given beside the sweep", field="sweep.recipe", wanted="the field recipe")
    content = {**sweep, "recipe": _with_storage(recipe, config)}
    JobRequest(id=identity, kind="tune", content=content).encoded()  # refuses one that is too long before it is parsed
    plan = read_plan(content)
    _require_bounded(plan.sweep)
    for one in recipes_of(plan):
        _confine(one, config, caller)
    return tune_request(identity, plan, environment(), config.tracking_uri)


def check_request(identity: str, manifests: list[str], config: ApiConfig) -> JobRequest:
    """Raises InputError: a path that is not absolute or leads outside of the roots."""
    paths = [confine_path(f"manifests.{n}", path, config.roots) for n, path in enumerate(manifests)]
    return JobRequest(id=identity, kind="data-check", content={"manifests": paths})


def _with_storage(tree: dict[str, Any], config: ApiConfig) -> dict[str, Any]:
    run = tree.get("run")
    if run is not None and not isinstance(run, dict):
        return tree
    return {**tree, "run": {"storage": str(config.storage), **(run or {})}}


def _require_bounded(sweep: Sweep) -> None:
    """Raises InputError: more trials, choices or variants than a service can look at."""
    choices = sum(len(axis.choices) for axis in sweep.space.values() if isinstance(axis, Choices))
    for field, number, most in (
        ("sweep.trials", sweep.trials, MOST_TRIALS),
        ("sweep.space", choices, MOST_CHOICES),
        ("sweep.variants", len(sweep.variants), MOST_CHOICES),
        ("sweep.seeds", len(sweep.variants) * len(sweep.seeds), MOST_TRIALS),
    ):
        if number > most:
            raise InputError("is more than this service takes", field=field, value=number, wanted=f"at most {most}")


def _confine(recipe: Recipe, config: ApiConfig, caller: Caller) -> None:
    """Check the recipe as it was sent and with absolute paths: a name may turn out to be a folder of this machine."""
    for one in (recipe, with_absolute_paths(recipe)):
        confine(one, config.roots, config.tracking_uri)
    name = recipe.tracking.register_as
    if caller.models and (name is None or not name.startswith(caller.models)):
        wanted = f"a name that begins with {' or '.join(caller.models)}"
        raise InputError("is not for this token", field="tracking.register_as", value=name, wanted=wanted)
