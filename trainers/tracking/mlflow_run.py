"""MLflow's client, the experiment, and one run in it with each epoch's metrics, by explicit ids."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import without_password
from trainers.journal.journal import EpochRecord
from trainers.tracking.address import SERVERS, scheme, sqlite_file
from trainers.tracking.mlflow_check import deleted, lacks_package
from trainers.tracking.mlflow_compat import (
    EXPERIMENT_KIND,
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    PARENT_TAG,
    set_defaults,
)
from trainers.tracking.sqlite_store import ensure_store

_log = logging.getLogger(__name__)

RUN_NAME_TAG = "m2can.run_name"
MARK = "epoch"  # the metric that says which epochs a run has


def open_client(uri: str) -> MlflowClient:
    """A client of this address alone, free of MLflow's process-wide state.

    A SQLite store that is not there is made.
    """
    set_defaults()
    file = sqlite_file(uri)
    if file is not None:
        ensure_store(file)
    try:
        return MlflowClient(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    except ModuleNotFoundError as error:
        raise lacks_package(error, uri) from None


def open_experiment(uri: str, experiment: str, storage: Path) -> str:
    """The id of the experiment, which is created if it does not exist.

    Without a server its artifacts go to `<storage>/mlartifacts`; a server knows its own place for them.

    Raises:
        InputError: the experiment was deleted in MLflow.
        MlflowException: MLflow is unreachable.
    """
    client = open_client(uri)
    place = None if scheme(uri) in SERVERS else (storage.absolute() / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return client.create_experiment(experiment, artifact_location=place, tags=EXPERIMENT_KIND)
        except MlflowException as error:
            # Another process created it first.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)
    if found.lifecycle_stage == "deleted":
        raise deleted(experiment)
    return found.experiment_id


def close_children(uri: str, parent: str, status: str) -> None:
    """End the runs below `parent` that are still open: nobody works on them any more."""
    client = open_client(uri)
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], query, max_results=1000):
        client.set_terminated(run.info.run_id, status)


class RunLink:
    """An MLflow run, and what it holds already.

    client, experiment_id, run_id: where it is.
    sent: epochs whose metrics it has.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.client, self.experiment_id, self.run_id = client, run.info.experiment_id, run.info.run_id
        self._params: dict[str, str] = run.data.params
        self.sent = {int(metric.value) for metric in client.get_metric_history(self.run_id, MARK)}

    @classmethod
    def open(cls, uri: str, experiment: str, storage: Path, run_name: str, tags: dict[str, str]) -> RunLink:
        """Find the run tagged with this name, or make it. A run that failed or was left open by a crash is continued."""
        experiment_id = open_experiment(uri, experiment, storage)
        client = open_client(uri)
        tags = {**tags, RUN_NAME_TAG: run_name}
        query = f"tags.`{RUN_NAME_TAG}` = '{run_name}'"
        found = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        if not found:
            return cls(client, client.create_run(experiment_id, tags=tags, run_name=run_name))
        run_id, status = found[0].info.run_id, found[0].info.status
        if status not in ("RUNNING", "FINISHED"):
            client.update_run(run_id, status="RUNNING")
        client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        return cls(client, found[0])

    def send(self, record: EpochRecord) -> None:
        """Log an epoch's metrics, MARK last."""
        millis = int(record.time * 1000)
        # The epoch's own time: a database drops a second row of the same name, time, step and value.
        rows = [Metric(_key(name), value, millis, record.step) for name, value in sorted(record.metrics.items())]
        rows.append(Metric(MARK, record.epoch, millis, record.step))
        for start in range(0, len(rows), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=rows[start : start + MAX_METRICS_PER_BATCH])
        self.sent.add(record.epoch)

    def log_params(self, params: dict[str, Any]) -> None:
        """MLflow keeps a parameter's first value for ever; one that differs on resuming is named in the log."""
        wanted = {_key(name): _shortened(without_password(str(value))) for name, value in params.items()}
        changed = sorted(name for name, value in wanted.items() if self._params.get(name, value) != value)
        if changed:
            _log.warning("MLflow keeps the first values of %s of run %s", ", ".join(changed), self.run_id)
        rows = [Param(name, value) for name, value in wanted.items() if name not in self._params]
        for start in range(0, len(rows), MAX_PARAMS_TAGS_PER_BATCH):
            self.client.log_batch(self.run_id, params=rows[start : start + MAX_PARAMS_TAGS_PER_BATCH])


def _key(name: str) -> str:
    """A name as MLflow accepts it: few characters, and no empty or dotted steps in the path."""
    plain = posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", name)).lstrip("/.")
    return plain[:MAX_ENTITY_KEY_LENGTH] or "_"


def _shortened(value: str) -> str:
    return value if len(value) <= MAX_PARAM_VAL_LENGTH else value[: MAX_PARAM_VAL_LENGTH - 1] + "…"
