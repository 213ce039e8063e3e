"""The MLflow registry: find and list models, download one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError
from datasets_manifest.files import whole_folder
from trainers.failures import is_absent
from trainers.tracking.registered_models import (
    ModelVersion,
    check_files,
    download,
    find_model,
    newest,
    version_of,
)


def list_models(client: MlflowClient) -> list[ModelVersion]:
    """The newest version of every model, by name."""
    found = []
    for model in _pages(client.search_registered_models):
        versions = client.search_model_versions(f"name = '{model.name}'")
        if versions:
            found.append(newest(client, versions))
    return sorted(found, key=lambda v: v.name)


def search_models(
    client: MlflowClient,
    *,
    text: str = "",
    target: str | None = None,
    source: str | None = None,
    alias: str | None = None,
    min_accuracy: float | None = None,
) -> list[ModelVersion]:
    """All versions that meet every given condition, newest first.

    Args:
        text: part of the name, or of a tag's value.
        min_accuracy: target validation accuracy of the chosen epoch, 0 to 1; versions without it are left out.
    """

    def fits(version: ModelVersion) -> bool:
        tags = version.tags
        accuracy = tags.get("m2can.target_accuracy_chosen")
        return (
            (not text or any(text.lower() in value.lower() for value in (version.name, *tags.values())))
            and target in (None, tags.get("m2can.target"))
            and (source is None or source in tags.get("m2can.sources", "").split(","))
            and (alias is None or alias in version.aliases)
            and (min_accuracy is None or (accuracy is not None and float(accuracy) >= min_accuracy))
        )

    versions = [version_of(client, found) for found in _pages(client.search_model_versions)]
    return sorted(filter(fits, versions), key=lambda v: (v.created, v.name, int(v.version)), reverse=True)


def versions_of_run(client: MlflowClient, run_id: str) -> list[ModelVersion]:
    """The versions that were made of an MLflow run."""
    return [version_of(client, found) for found in client.search_model_versions(f"run_id = '{run_id}'")]


def recipe_of(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """The recipe a version was trained with, as flat keys, from its MLflow run; empty if the run is gone."""
    if version.run_id is None:
        return {}
    try:
        return dict(client.get_run(version.run_id).data.params)
    except MlflowException as error:
        if not is_absent(error):
            raise
        return {}


def fetch(client: MlflowClient, reference: str, to: Path) -> ModelVersion:
    """Write a version's files to the new folder `to`, complete and checked, or not at all.

    Raises:
        InputError: `to` exists, the version is not there, or a file is missing or altered.
    """
    if to.exists():
        raise InputError("exists already", file=to, field="--to", wanted="a new folder")
    version = find_model(client, reference)
    with whole_folder(to) as draft:
        shutil.copytree(download(client, version), draft, dirs_exist_ok=True)
        check_files(draft, version)
    return version


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All results of a search; MLflow returns them in pages of a hundred."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
