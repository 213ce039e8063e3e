"""Where runs and MLflow are: addresses alone. MLflow itself, whose import takes seconds, is not needed for that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from datasets_manifest.errors import InputError
from trainers.store import is_store

if TYPE_CHECKING:
    from trainers.recipe import Recipe
    from trainers.store.run_store import RunStore


SERVERS = ("http", "https", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def run_storage(recipe: Recipe) -> Path:
    """The folder in which runs lie, absolute; of an object store, the folder of their working copies on this machine.

    Raises:
        InputError: an address that is no store for runs, or a path that cannot be printed.
    """
    store = run_store(recipe)
    folder = store.folder if store is not None else Path(recipe.run.storage).resolve()
    if not str(folder).isprintable():  # bytes that are no UTF-8 count as not printable, too
        problem = "has characters in its path that cannot be printed"
        raise InputError(problem, field="run.storage", value=str(folder), wanted="a folder without them")
    return folder


def run_store(recipe: Recipe) -> RunStore | None:
    """The object store in which runs lie; None: they lie in a folder. Raises InputError: no store for runs."""
    if not is_store(recipe.run.storage):
        return None
    from trainers.store.run_store import store_of  # here: with pyarrow, which most commands start without

    return store_of(recipe.run.storage)


def require_folder_of_runs(recipe: Recipe, what: str) -> None:
    """Raises InputError: runs lie in an object store, where `what` cannot be."""
    if is_store(recipe.run.storage):
        problem = f"is an object store, where {what} cannot be kept"
        raise InputError(problem, field="run.storage", value=recipe.run.storage, wanted="a folder that all nodes see")


def tracking_uri(recipe: Recipe) -> str:
    """Where MLflow is, for this recipe.

    Raises:
        InputError: an address MLflow cannot track to, or none at all and runs in an object store.
    """
    if is_store(recipe.run.storage) and not (recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        problem = "is not stated, nor MLFLOW_TRACKING_URI; beside runs in an object store there is no SQLite file"
        raise InputError(problem, field="tracking.uri", wanted="an MLflow server's address, or tracking.enabled=false")
    return resolve_tracking_uri(recipe.tracking.uri, run_storage(recipe))


def resolve_tracking_uri(recipe_uri: str | None, storage: Path) -> str:
    """The recipe's address, else MLFLOW_TRACKING_URI, else a SQLite file in the storage folder.

    Raises:
        InputError: an address MLflow cannot track to.
    """
    for uri, field in ((recipe_uri, "tracking.uri"), (os.environ.get("MLFLOW_TRACKING_URI"), "MLFLOW_TRACKING_URI")):
        if uri:
            if scheme(uri) not in (*SERVERS, *_DATABASES):
                raise not_an_address(uri, field)
            return uri
    return sqlite_uri(storage / "mlflow.db")


def not_an_address(uri: str, field: str, why: str = "") -> InputError:
    """The refusal of an address of no kind that MLflow knows."""
    wanted = "http(s)://…, sqlite:///file.db, postgresql://…, mysql://… or mssql://…"
    problem = "is no address MLflow can track to" + (f" ({why})" if why else "")
    return InputError(problem, field=field, value=uri, wanted=wanted)


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite store, whatever characters its path has."""
    path = str(file.absolute())
    if "%" not in path and "?" not in path:
        return f"sqlite:///{path}"
    # SQLAlchemy decodes what is quoted. Behind a plain `sqlite:///` MLflow would make the quoted folder, too.
    return f"sqlite+pysqlite:///{quote(path)}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores, and for one in memory."""
    path = unquote(uri.partition("://")[2].partition("?")[0].removeprefix("/"))
    return Path(path).absolute() if scheme(uri) == "sqlite" and path not in ("", ":memory:") else None


def scheme(uri: str) -> str:
    """`postgresql+psycopg2://…` → `postgresql`; empty for a path. `databricks` is written without `://`."""
    head, mark, _ = uri.partition("://")
    return head.partition("+")[0].lower() if mark or head == "databricks" else ""
