"""Where runs and MLflow are: addresses alone. MLflow itself, whose import takes seconds, is not needed for that."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_manifest.errors import InputError

if TYPE_CHECKING:
    from trainers.recipe import Recipe

SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def run_storage(recipe: Recipe) -> Path:
    """The folder in which runs lie, absolute. Raises InputError: an address (`s3://…`) in place of a folder."""
    storage = recipe.run.storage
    if "://" in storage:
        problem = "is not a folder; object stores are not supported yet"
        raise InputError(problem, field="run.storage", value=storage, wanted="a folder that all nodes see")
    return Path(storage).resolve()


def tracking_uri(recipe: Recipe) -> str:
    """Where MLflow is, for this recipe. Raises InputError: an address MLflow cannot track to."""
    return resolve_tracking_uri(recipe.tracking.uri, run_storage(recipe))


def resolve_tracking_uri(recipe_uri: str | None, storage: Path) -> str:
    """The recipe's address, else MLFLOW_TRACKING_URI, else a SQLite file in the storage folder.

    Raises:
        InputError: an address MLflow cannot track to.
    """
    for uri, field in ((recipe_uri, "tracking.uri"), (os.environ.get("MLFLOW_TRACKING_URI"), "MLFLOW_TRACKING_URI")):
        if uri:
            if scheme(uri) not in (*SERVERS, *_DATABASES):
                wanted = "http(s)://…, sqlite:///file.db, postgresql://…, mysql://… or mssql://…"
                raise InputError("is no address MLflow can track to", field=field, value=uri, wanted=wanted)
            return uri
    return f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def scheme(uri: str) -> str:
    """`postgresql+psycopg2://…` → `postgresql`; empty for a path. `databricks` is written without `://`."""
    head, mark, _ = uri.partition("://")
    return head.partition("+")[0].lower() if mark or head == "databricks" else ""


def without_password(text: str) -> str:
    """An address, or an error's text with addresses in it, as it may be shown."""
    return re.sub(r"://[^/\s]+@", "://***@", text)
