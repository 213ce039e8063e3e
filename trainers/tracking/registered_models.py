"""Registered models: find the version that a reference means, download and check its files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError
from datasets_manifest.files import digests, read_json
from trainers.failures import is_absent, is_of_mlflow
from trainers.model.checkpoint import verify
from trainers.tracking.address import resolve_tracking_uri, sqlite_file
from trainers.tracking.mlflow_compat import REGISTERED_MODEL_META_FILE_NAME, limit_waiting
from trainers.tracking.mlflow_run import open_client
from trainers.tracking.registration import CHECKSUM_TAG, CHECKSUMS

_REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[^@:/]+)(?:@(?P<alias>[\w.-]+)|[:/](?P<version>\d+))?$")
REGISTERED = "one that `m2can models search` shows"


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


def client_for(uri: str | None = None, storage: Path = Path("runs")) -> MlflowClient:
    """A client of the tracking address: given, from MLFLOW_TRACKING_URI, or the store in `storage`.

    Raises:
        InputError: the local store does not exist.
    """
    address = resolve_tracking_uri(uri, storage.resolve())
    file = sqlite_file(address)
    if file is not None and not file.is_file():
        raise InputError(
            "there is no MLflow store yet",
            file=file,
            wanted="a trained run here, --tracking-uri or MLFLOW_TRACKING_URI",
        )
    limit_waiting()
    return open_client(address)


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
            return version_of(client, client.get_model_version_by_alias(name, alias))
        if number:
            return version_of(client, client.get_model_version(name, number))
        versions = client.search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        if not is_absent(error):
            raise
        why = f"is not in the registry ({error.message})"
        raise InputError(why, field="MODEL", value=reference, wanted=REGISTERED) from None
    if not versions:
        raise InputError("is not in the registry", field="MODEL", value=reference, wanted=REGISTERED)
    return newest(client, versions)


def fetch_bundle(client: MlflowClient, reference: str) -> Path:
    """Download a model's files and check them; the folder that trainers.model.predictor.Predictor loads.

    Raises:
        InputError: not there, not a model of ours, or altered.
    """
    return fetch_version(client, find_model(client, reference))


def fetch_version(client: MlflowClient, version: ModelVersion) -> Path:
    """The same of a version that was found."""
    folder = download(client, version)
    check_files(folder, version)
    return bundle_of(folder)


def bundle_of(folder: Path) -> Path:
    """The folder inside a fetched version that Predictor.load takes. Raises InputError: there is none."""
    found = sorted((folder / "artifacts").rglob("model.json"))
    if not found:
        raise InputError("is not a model of this tool", file=folder, wanted="a folder that `m2can models fetch` wrote")
    return found[0].parent


def check_files(folder: Path, version: ModelVersion) -> None:
    """Compare a version's files with files.json, and that with the registry.

    Raises:
        InputError: names the first file that is missing, altered or added.
    """
    wanted = version.tags.get(CHECKSUM_TAG)
    listing = folder / CHECKSUMS
    name = f"{version.name}:{version.version}"
    if wanted is None or not listing.is_file():
        raise InputError("is not a model of this tool: it has no checksums", field="MODEL", value=name)
    found = hashlib.sha256(listing.read_bytes()).hexdigest()
    if found != wanted:
        raise InputError("was altered after registration", file=listing, value=found, wanted=wanted)
    verify(folder)
    extra = sorted(set(digests(folder)) - set(read_json(listing)) - {REGISTERED_MODEL_META_FILE_NAME})
    if extra:
        raise InputError("was put in after registration", file=folder / extra[0])


def download(client: MlflowClient, version: ModelVersion) -> Path:
    """The folder of a version's files, unchecked. Raises InputError: they are gone. MlflowException: MLflow is away."""
    uri = client.get_model_version_download_uri(version.name, version.version)
    try:
        return Path(download_artifacts(uri, tracking_uri=client.tracking_uri))
    except (MlflowException, OSError) as error:
        if is_of_mlflow(error) and not is_absent(error):
            raise
        name = f"{version.name}:{version.version}"
        raise InputError(f"its files could not be fetched ({error})", field="MODEL", value=name) from None


def newest(client: MlflowClient, versions: Sequence[Any]) -> ModelVersion:
    """The version of the highest number among those that MLflow found."""
    return version_of(client, max(versions, key=lambda version: int(version.version)))


def version_of(client: MlflowClient, found: Any) -> ModelVersion:
    """A version that MLflow found, read anew: its search leaves the aliases out."""
    read = client.get_model_version(found.name, str(found.version))
    return ModelVersion(
        name=read.name,
        version=str(read.version),
        aliases=sorted(read.aliases),
        run_id=read.run_id or None,
        created=datetime.fromtimestamp(read.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        tags=dict(read.tags),
        source=read.source,
    )
