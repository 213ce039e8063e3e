"""The MLflow registry: find and show models, bring one to this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError
from trainers.tracking import open_client, resolve_tracking_uri

_REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[^@:/]+)(?:@(?P<alias>[\w.-]+)|[:/](?P<version>\d+))?$")


@dataclass(frozen=True)
class ModelVersion:
    """One registered version."""

    name: str
    version: str
    aliases: list[str]
    run_id: str | None
    created: str
    tags: dict[str, str]
    source: str

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def client_for(uri: str | None = None, storage: Path = Path("runs")) -> MlflowClient:
    """A client of the tracking address: given, from MLFLOW_TRACKING_URI, or the store in `storage`.

    Raises:
        InputError: the local store does not exist.
    """
    address = resolve_tracking_uri(uri, storage.resolve())
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).is_file():
        raise InputError(
            "there is no MLflow store yet",
            file=address.removeprefix("sqlite:///"),
            wanted="a trained run here, --tracking-uri or MLFLOW_TRACKING_URI",
        )
    return open_client(address)


def list_models(client: MlflowClient) -> list[ModelVersion]:
    """The newest version of every model, by name."""
    found = []
    for model in client.search_registered_models():
        versions = client.search_model_versions(f"name = '{model.name}'")
        if versions:
            found.append(_version(client, max(versions, key=lambda v: int(v.version))))
    return sorted(found, key=lambda v: v.name)


def find_model(client: MlflowClient, reference: str) -> ModelVersion:
    """The version that `name`, `name@alias` or `name:version` (with or without `models:/`) means; newest for a bare name.

    Raises:
        InputError: malformed, or not there.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise InputError(
            "is not a model's name", field="MODEL", value=reference, wanted="NAME, NAME@alias or NAME:version"
        )
    name, alias, number = match["name"], match["alias"], match["version"]
    try:
        if alias:
            return _version(client, client.get_model_version_by_alias(name, alias))
        if number:
            return _version(client, client.get_model_version(name, number))
        versions = client.search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        raise InputError(f"is not in the registry ({error.message})", field="MODEL", value=reference) from None
    if not versions:
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise InputError(
            "is not in the registry", field="MODEL", value=reference, wanted=f"a registered model: {known}"
        )
    return _version(client, max(versions, key=lambda v: int(v.version)))


def fetch_bundle(client: MlflowClient, reference: str, to: Path | None = None) -> Path:
    """Bring the model's files to this machine; the folder that trainers.predictor.Predictor loads.

    Raises:
        InputError: not there, or not a model of ours.
    """
    version = find_model(client, reference)
    uri = client.get_model_version_download_uri(version.name, version.version)
    try:
        folder = Path(
            download_artifacts(uri, dst_path=str(to) if to else None, tracking_uri=client._tracking_client.tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise InputError(f"its files could not be fetched ({error})", field="MODEL", value=reference) from None
    found = sorted(folder.rglob("model.json"))
    if not found:
        raise InputError("is not a model of this tool", field="MODEL", value=reference)
    return found[0].parent


def _version(client: MlflowClient, found: Any) -> ModelVersion:
    # A search gives no aliases; the version read by itself does.
    whole = client.get_model_version(found.name, str(found.version))
    return ModelVersion(
        name=whole.name,
        version=str(whole.version),
        aliases=sorted(whole.aliases),
        run_id=whole.run_id or None,
        created=datetime.fromtimestamp(whole.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        tags=dict(whole.tags),
        source=whole.source,
    )
