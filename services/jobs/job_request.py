"""The request that a job carries out: validated where it is submitted, sent as one JSON string in its environment."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets_manifest.errors import InputError, from_validation_error
from trainers.recipe import Recipe
from trainers.recipe.loading import encoders_at
from trainers.recipe.run_sections import Cluster
from trainers.tracking.address import run_storage, run_store

VARIABLE = "M2CAN_JOB"
MAX_BYTES = 100_000  # Linux limits one string of an environment to 128 KiB
ID_PATTERN = r"^[a-z][a-z0-9-]{0,40}$"
Kind = Literal["train", "tune", "data-check"]
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")


class JobRequest(BaseModel):
    """One job.

    id: made by us; also the name of the run unless the recipe names one.
    content: a complete recipe, a sweep with its recipe, or `{"manifests": […]}`; paths in it are absolute.
    environment: hash and versions where the job was submitted.
    max_running: it waits while so many jobs of its submitter that came before have not ended; None: it does not wait.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=ID_PATTERN)]
    kind: Kind
    content: dict[str, Any]
    environment: dict[str, Any] = {}
    max_running: Annotated[int, Field(ge=1)] | None = None

    @property
    def run_name(self) -> str:
        """The name of the run or of the sweep, under which an interrupted one is resumed."""
        if self.kind == "train":
            return str(self.content["run"]["name"])
        return str(self.content["name"]) if self.kind == "tune" else self.id

    @property
    def grace_s(self) -> float | None:
        """Seconds from the request to stop the job to its end; None: it has nothing to write."""
        if self.kind == "data-check":
            return None
        recipe = self.content if self.kind == "train" else self.content.get("recipe", {})
        return float(recipe.get("cluster", {}).get("grace_s", Cluster.model_fields["grace_s"].default))

    def encoded(self) -> str:
        """Raises InputError: too long for an environment."""
        text = self.model_dump_json()
        if len(text.encode()) > MAX_BYTES:
            problem, wanted = "is too long to travel with a job", f"at most {MAX_BYTES} bytes"
            raise InputError(problem, field="RECIPE", value=len(text.encode()), wanted=wanted)
        return text

    @classmethod
    def decoded(cls, text: str) -> JobRequest:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise from_validation_error(error, cls, VARIABLE) from None


def check_id(identity: str) -> str:
    """Ids become file names on the cluster, so their form is limited. Raises InputError."""
    if re.fullmatch(ID_PATTERN.strip("^$"), identity) is None:
        wanted = "a lower-case letter, then at most 40 lower-case letters, digits or hyphens"
        raise InputError("cannot be a job's id", field="ID", value=identity, wanted=wanted)
    return identity


def train_request(identity: str, recipe: Recipe, environment: dict[str, Any] | None = None) -> JobRequest:
    """The request to train `recipe`: named, with absolute paths, without a cluster's address (the job runs on its own).

    Raises:
        InputError: an address in it has a password.
    """
    check_id(identity)
    resolved = with_absolute_paths(recipe)
    run = resolved.run.model_copy(update={"name": recipe.run.name or identity})
    uri = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    tracking = recipe.tracking.model_copy(update={"uri": uri})
    cluster = recipe.cluster.model_copy(update={"address": None})
    content = resolved.model_copy(update={"run": run, "tracking": tracking, "cluster": cluster}).model_dump(mode="json")
    refuse_passwords(content)
    return JobRequest(id=identity, kind="train", content=content, environment=environment or {})


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths. A name that is no file or folder here stays: it may be a model's name on a hub."""

    features = recipe.encoders.features
    if features is not None and "://" not in features:
        features = str(Path(features).expanduser().resolve())
    encoders = encoders_at(recipe.encoders, Path.cwd()).model_copy(update={"features": features})
    start = recipe.train.start_from
    train = recipe.train
    if start and "/" in start and (place := Path(start).expanduser()).exists():
        train = train.model_copy(update={"start_from": str(place.resolve())})
    storage = str(run_store(recipe) or run_storage(recipe))
    return recipe.model_copy(
        update={
            "encoders": encoders,
            "train": train,
            "run": recipe.run.model_copy(update={"storage": storage}),
        }
    )


def refuse_passwords(tree: Any, path: str = "") -> None:
    """Refuse addresses with a password: everybody who sees the cluster can read a job's request.

    Raises:
        InputError: names the field.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            refuse_passwords(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            refuse_passwords(value, f"{path}.{number}")
    elif isinstance(tree, str) and _PASSWORD.search(tree):
        raise InputError(
            "has a password in it, which everybody who sees the cluster could read",
            field=path,
            wanted="an address without it; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster",
        )


def command_line(request: JobRequest, folder: Path) -> list[str]:
    """Arguments of `m2can` for this job; files it needs are written into `folder`."""
    if request.kind == "train":
        file = folder / "recipe.json"
        file.write_text(json.dumps(request.content), encoding="utf-8")
        return ["train", str(file)]
    if request.kind == "tune":
        file = folder / "sweep.yaml"
        # Not as JSON: YAML would read its 1e-05 as a string.
        file.write_text(yaml.safe_dump(request.content), encoding="utf-8")
        return ["tune", str(file)]
    return ["data", "check", *request.content["manifests"], "--json"]
