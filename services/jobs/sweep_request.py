"""The request to run a sweep: checked against its recipe where it is submitted, with absolute paths."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from datasets_manifest.errors import InputError
from services.jobs.job_request import JobRequest, check_id, refuse_passwords, with_absolute_paths
from trainers.recipe import Recipe
from trainers.recipe.overrides import put
from trainers.tracking.address import require_folder_of_runs
from tuning.sweep import Choices, SweepPlan, as_override, load_sweep

_ENCODERS = ("encoders.text.name", "encoders.text.weights", "encoders.picture.weights", "encoders.features")
_PATHS = ("data.sources", "data.target", "run.storage", *_ENCODERS)


def tune_request(
    identity: str, plan: SweepPlan, environment: dict[str, Any] | None = None, tracking_uri: str | None = None
) -> JobRequest:
    """A sweep with its recipe inside it. `tracking_uri`: default: the recipe's, or MLFLOW_TRACKING_URI.

    Raises:
        InputError: an address in it has a password.
    """
    check_id(identity)
    require_folder_of_runs(plan.recipe([]), "a sweep")
    resolved = with_absolute_paths(plan.recipe([]))
    tree = copy.deepcopy(plan.tree)
    for key in _PATHS:
        put(tree, key, resolved.flat()[key])
    tracked = tracking_uri or resolved.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    put(tree, "tracking.uri", tracked)
    put(tree, "cluster.address", None)
    # The overrides for all trials are in the tree already.
    content = plan.sweep.model_dump(mode="json") | {"set": [], "recipe": tree}
    content["variants"] = {
        name: [_resolved_override(plan, overrides, one) for one in overrides]
        for name, overrides in plan.sweep.variants.items()
    }
    for key, axis in plan.sweep.space.items():
        if key in _PATHS and isinstance(axis, Choices):
            values = [with_absolute_paths(plan.recipe([as_override(key, value)])).flat()[key] for value in axis.choices]
            content["space"][key] = {"choices": values}
    refuse_passwords(content)
    return JobRequest(id=identity, kind="tune", content=content, environment=environment or {})


def read_plan(content: dict[str, Any]) -> SweepPlan:
    """The plan of a sweep that was received as data, with its recipe inside.

    Raises:
        InputError: names the field, but no file: the sender knows of none.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="m2can-sweep-") as folder:
            # Not as JSON: YAML would read its 1e-05 as a string.
            (Path(folder) / "sweep.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            plan = load_sweep(Path(folder) / "sweep.yaml")
    except InputError as error:
        raise InputError(error.problem, field=error.field, value=error.value, wanted=error.wanted) from None
    return replace(plan, file=Path("sweep"), anchor=Path("/sweep"))


def recipes_of(plan: SweepPlan) -> Iterator[Recipe]:
    """The sweep's recipe, and what each variant and each listed choice makes of it: all paths a trial may use."""
    yield plan.recipe([])
    for overrides in plan.sweep.variants.values():
        yield plan.recipe(overrides)
    for key, axis in plan.sweep.space.items():
        if isinstance(axis, Choices):
            for value in axis.choices:
                yield plan.recipe([as_override(key, value)])


def _resolved_override(plan: SweepPlan, overrides: list[str], one: str) -> str:
    key = one.partition("=")[0].strip()
    return as_override(key, with_absolute_paths(plan.recipe(overrides)).flat()[key]) if key in _PATHS else one
