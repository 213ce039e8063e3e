"""What this project uses of MLflow beyond its documented interface: inner names and behaviours, all in this file.

pyproject.toml allows one minor release of MLflow. Before another one is allowed, tests/trainers/tracking/
test_mlflow_compat.py has to pass with it.
"""

from __future__ import annotations

import os

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model

try:
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
        MLFLOW_HTTP_REQUEST_TIMEOUT,
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
    )
    from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_PARENT_RUN_ID
    from mlflow.utils.validation import (
        MAX_ENTITY_KEY_LENGTH,
        MAX_METRICS_PER_BATCH,
        MAX_PARAM_VAL_LENGTH,
        MAX_PARAMS_TAGS_PER_BATCH,
    )
except ImportError as error:
    raise ImportError(
        f"MLflow {mlflow.__version__} has no longer what trainers/tracking/mlflow_compat.py needs ({error}); "
        "wanted mlflow>=3.17,<3.18"
    ) from error

__all__ = [
    "EXPERIMENT_KIND",
    "MAX_ENTITY_KEY_LENGTH",
    "MAX_METRICS_PER_BATCH",
    "MAX_PARAMS_TAGS_PER_BATCH",
    "MAX_PARAM_VAL_LENGTH",
    "PARENT_TAG",
    "REGISTERED_MODEL_META_FILE_NAME",
    "VERSIONS_TAG",
    "is_served",
    "limit_waiting",
    "make_sqlite_store",
    "origin_of",
    "set_defaults",
]

# Tags of an experiment: MLflow's pages guess what it is for, unless they are told.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
PARENT_TAG = MLFLOW_PARENT_RUN_ID  # of a run: the id of the run above it
VERSIONS_TAG = MLFLOW_MODEL_VERSIONS  # of a logged model: JSON [{"name", "version"}] of the versions made of it


def set_defaults() -> None:
    """Set what MLflow reads from environment variables only; what the user set stands."""
    # MLflow would repeat a failed request for four minutes; the sender repeats it, and says so.
    os.environ.setdefault(MLFLOW_HTTP_REQUEST_MAX_RETRIES.name, "1")
    # Standard output belongs to the command line (`--json`).
    os.environ.setdefault(MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.name, "true")
    os.environ.setdefault(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.name, "false")


def limit_waiting() -> None:
    """For looking things up: a server that hangs is given up after two attempts of 15 s. What the user set stands."""
    os.environ.setdefault(MLFLOW_HTTP_REQUEST_TIMEOUT.name, "15")


def is_served(client: MlflowClient) -> bool:
    """Whether a server stands between the client and the database.

    Without one, MLflow looks `models:/<id>` up at the process-wide address, and does not note a version with its model.
    """
    return client.tracking_uri.startswith(("http", "databricks"))


def origin_of(logged: LoggedModel) -> Model:
    """The model description that `mlflow.pyfunc.save_model` completes, with the ids of `logged`."""
    return Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        run_id=logged.source_run_id,
        model_id=logged.model_id,
    )


def make_sqlite_store(uri: str, artifacts: str) -> None:
    """Make the tables of a new store and its first experiment, and let go of the file.

    Args:
        artifacts: address of the folder for the artifacts of MLflow's own first experiment.
    """
    SqlAlchemyStore(uri, artifacts)._dispose_engine()
