"""Checks, without writing, that MLflow's store is complete and that the experiment can take a run.

MLflow itself, whose import takes seconds, is needed for a server alone. Its own client would make the tables of a database
that has none.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from datasets_manifest.errors import InputError, first_line
from trainers.recipe import Recipe
from trainers.tracking.address import SERVERS, not_an_address, scheme, sqlite_file, tracking_uri

_PATIENCE_S = 10.0  # for an answer before a run begins
_STAGE = "SELECT lifecycle_stage FROM experiments WHERE name = {}"


def require_tracking(recipe: Recipe) -> None:
    """Check that MLflow will take the run. If it does not answer, training starts all the same: the journal keeps the records.

    Raises:
        InputError: an address MLflow cannot track to, a package that is missing, a file that is no store, or the
            experiment was deleted.
    """
    if recipe.tracking.enabled:
        with contextlib.suppress(OSError):
            require_experiment(tracking_uri(recipe), recipe.tracking.experiment)


def require_experiment(uri: str, experiment: str, timeout_s: float = _PATIENCE_S) -> None:
    """Raises InputError: see require_tracking. Raises OSError: MLflow does not answer within `timeout_s`, or refuses."""
    file = sqlite_file(uri)
    if file is not None:
        stage = _stage_in_file(file, experiment)
    elif scheme(uri) in SERVERS:
        stage = _within(timeout_s, lambda: _stage_at_server(uri, experiment))
    else:
        stage = _within(timeout_s, lambda: _stage_in_database(uri, experiment))
    if stage == "deleted":
        raise deleted(experiment)


def deleted(experiment: str) -> InputError:
    """The refusal of an experiment that MLflow's page or command has deleted."""
    return InputError(
        "was deleted in MLflow, which keeps its name",
        field="tracking.experiment",
        value=experiment,
        wanted="another name, or `mlflow experiments restore --experiment-id ID`",
    )


def lacks_package(error: ModuleNotFoundError, uri: str) -> InputError:
    """The refusal of a database whose driver is not installed."""
    problem = f"needs the package {error.name}, which is not installed"
    return InputError(problem, field="tracking.uri", value=uri, wanted=f"pip install {error.name}")


def is_whole(file: Path) -> bool:
    """Whether a SQLite store has an experiment: MLflow enters its first one when all tables are made.

    Raises:
        InputError: the file is no database.
    """
    if not file.is_file():
        return False
    try:
        with contextlib.closing(_open(file)) as database:
            return database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
    except sqlite3.OperationalError as error:
        # A database that is locked, or that may only be read, is one that was used.
        return "no such table" not in str(error)
    except sqlite3.DatabaseError as error:
        raise InputError(f"is no MLflow store ({error})", file=file, wanted="another folder, or its removal") from None


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True)


def _stage_in_file(file: Path, experiment: str) -> str | None:
    if not is_whole(file):
        return None
    try:
        with contextlib.closing(_open(file)) as database:
            row = database.execute(_STAGE.format("?"), (experiment,)).fetchone()
    except sqlite3.OperationalError as error:  # locked
        raise OSError(str(error)) from None
    return row[0] if row else None


def _stage_at_server(uri: str, experiment: str) -> str | None:
    from mlflow import MlflowClient

    from trainers.tracking.mlflow_compat import set_defaults

    set_defaults()
    found = MlflowClient(uri, registry_uri=uri).get_experiment_by_name(experiment)
    return found.lifecycle_stage if found else None


def _stage_in_database(uri: str, experiment: str) -> str | None:
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import ArgumentError

    try:
        engine = create_engine(uri)  # connects to nothing yet
    except ModuleNotFoundError as error:
        raise lacks_package(error, uri) from None
    except ArgumentError as error:
        raise not_an_address(uri, "tracking.uri", first_line(error)) from None
    try:
        if not inspect(engine).has_table("experiments"):
            return None
        with engine.connect() as connection:
            return connection.execute(text(_STAGE.format(":name")), {"name": experiment}).scalar()
    finally:
        engine.dispose()


def _within(timeout_s: float, ask: Callable[[], str | None]) -> str | None:
    """What `ask` answers. Nobody waits for its thread, which may hang in a request.

    Raises:
        InputError: as `ask`.
        OSError: no answer in time, or another error of `ask`.
    """
    answers: list[str | None] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # libraries of many kinds: MLflow's, requests', SQLAlchemy's, the driver's
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="m2can-mlflow-check")
    thread.start()
    thread.join(timeout_s)
    if answers:
        return answers[0]
    if not errors:
        raise TimeoutError(f"no answer in {timeout_s:g} s")
    if isinstance(errors[0], InputError):
        raise errors[0]
    raise OSError(first_line(errors[0])) from errors[0]
