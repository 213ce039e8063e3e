"""The only writer to MLflow: a thread in the driver reads the journal and sends what MLflow does not have yet.

    controller ──after_report──▶ journal/epoch-00001.json … ──Sender──▶ MLflow run, pictures, model, registry

Training never waits for MLflow and never fails with it. MLflow itself says what it has: an epoch is sent in one batch with
a metric `epoch`, and an epoch found there is not sent again. So if a sender is killed, the next one of the same run name
sends the rest, once.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from datasets_manifest.errors import InputError, first_line, without_password
from trainers.failures import TrackingUnavailable
from trainers.journal.journal import Journal
from trainers.tracking.mlflow_run import RunLink
from trainers.tracking.registration import ModelToLog, register

_log = logging.getLogger(__name__)

_AWAY = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)
# Answers that another attempt will not change.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
_LONGEST_PAUSE_S = 15.0
CLOSED_WITHIN_S = 10.0  # how long MLflow may be away when a run that failed is closed there


@dataclass(frozen=True)
class TrackedRun:
    """Where a run is found in MLflow; name and version are None if no model was registered.

    not_candidate: why the alias `candidate` did not move to the version; None if it did.
    """

    run_id: str
    model_name: str | None
    model_version: str | None
    experiment_id: str
    not_candidate: str | None = None


@dataclass(frozen=True)
class _Ending:
    """A call of `finish`, and the thread's answer to it."""

    status: str
    artifacts: Path | None
    model: ModelToLog | None
    done: Future[TrackedRun] = field(default_factory=Future)


class Sender:
    """Sends a run's journal to MLflow while it grows; one for a run, in the driver.

    Args:
        uri: address of MLflow.
        experiment: its name.
        run_name: unique name of the run; the MLflow run is found again by it.
        journal: of the run.
        params: flat parameters of the run.
        tags: of the MLflow run.
        storage: folder for artifacts where there is no server.
        interval_s: seconds between two reads of the journal.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        journal: Journal,
        params: dict[str, Any],
        tags: dict[str, str],
        storage: Path,
        *,
        interval_s: float = 2.0,
    ) -> None:
        if "'" in run_name:
            raise InputError("has a quote in it", field="run.name", value=run_name)
        self.uri, self.experiment, self.run_name, self.journal = uri, experiment, run_name, journal
        self.tags = tags
        self._params, self._storage, self._interval_s = params, storage, interval_s
        self._shown_uri = without_password(uri)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._link: RunLink | None = None
        self._ending: _Ending | None = None
        self._failing_since: float | None = None  # time.monotonic() of the first of the failures in a row
        self._answering = False  # MLflow answered in this round, and `finish` is being carried out
        self._warned = False
        self._last_error: Exception | None = None
        self.run_id: str | None = None  # known once MLflow has answered

    def start(self) -> None:
        """Begin sending, in the background."""
        with self._lock:
            self._stopping = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"mlflow-{self.run_name}", daemon=True)
                self._thread.start()

    def finish(
        self,
        status: str,
        *,
        artifacts: Path | None = None,
        model: ModelToLog | None = None,
        deadline_s: float = 120.0,
    ) -> TrackedRun:
        """Send what is left, log files and model, register it, end the run. Doing it again changes nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
            artifacts: folder whose content is logged under `report`.
            model: to be registered as `candidate`.
            deadline_s: seconds MLflow may be unreachable in a row before this gives up. An upload under way is not cut off.

        Raises:
            TrackingUnavailable: MLflow stayed unreachable or refused.
        """
        if artifacts is not None and not artifacts.is_dir():
            raise FileNotFoundError(f"{artifacts}: no such folder to log")
        ending, asked = _Ending(status, artifacts, model), time.monotonic()
        self._ending, self._failing_since = ending, None
        self._wake.set()
        self.start()
        while not ending.done.done():
            away_s = 0.0 if self._answering else time.monotonic() - (self._failing_since or asked)
            if away_s >= deadline_s:
                self._ending = None
                break
            wait([ending.done], timeout=min(deadline_s - away_s, 0.5))
        self.stop()
        if not ending.done.done():
            raise TrackingUnavailable(self._unsent(f"was away for {deadline_s:g} s")) from self._last_error
        return ending.done.result()

    def stop(self) -> None:
        """Stop sending without ending the run; what is left goes out when a run of this name is started again."""
        with self._lock:
            self._stopping = True
        self._wake.set()

    def _work(self) -> None:
        pause = self._interval_s
        while True:
            # Cleared before the request is read: one that arrives later wakes the next wait.
            self._wake.clear()
            ending = self._ending
            try:
                link = self._send_new_records()
                self._answering = ending is not None
                tracked = _end_run(link, ending) if ending is not None else None
                self._note_success()
                if ending is not None and tracked is not None:
                    self._ending = None
                    ending.done.set_result(tracked)
                pause = self._interval_s
            except Exception as error:
                self._link = None  # what MLflow has is read from it again
                self._note_failure(error, ending)
                pause = min(max(2 * pause, 0.5), _LONGEST_PAUSE_S)
            self._answering = False
            with self._lock:
                if self._stopping:
                    self._thread = None
                    return
            self._wake.wait(pause)

    def _send_new_records(self) -> RunLink:
        """Send what the MLflow run does not have; find or make that run first."""
        if self._link is None:
            link = RunLink.open(self.uri, self.experiment, self._storage, self.run_name, self.tags)
            link.log_params(self._params)
            self._link = link
        self.run_id = self._link.run_id
        for record in self.journal.read(known=self._link.sent):
            self._link.send(record)
        return self._link

    def _note_success(self) -> None:
        self._failing_since = None
        if self._warned:
            _log.warning("MLflow at %s is back and has all records", self._shown_uri)
        self._warned = False

    def _note_failure(self, error: Exception, ending: _Ending | None) -> None:
        self._last_error = error
        self._failing_since = self._failing_since or time.monotonic()
        if ending is not None and isinstance(error, MlflowException) and error.error_code in _REFUSALS:
            refusal = TrackingUnavailable(self._unsent("refused"))
            refusal.__cause__ = error
            self._ending = None
            ending.done.set_exception(refusal)
        elif ending is not None and not isinstance(error, _AWAY):
            self._ending = None
            ending.done.set_exception(error)
        elif not self._warned:
            self._warned = True
            _log.warning(
                "MLflow at %s does not take the run's records, training goes on; the journal %s keeps them until it does: %s",
                self._shown_uri,
                self.journal.folder,
                without_password(first_line(error)),
            )

    def _unsent(self, what: str) -> str:
        cause = f" ({without_password(first_line(self._last_error))})" if self._last_error is not None else ""
        return (
            f"MLflow at {self._shown_uri} {what}{cause}. Nothing is lost: the journal {self.journal.folder} and the "
            f"checkpoints beside it keep everything, and it is sent, once, when a run named {self.run_name} is started "
            "again."
        )


def _end_run(link: RunLink, ending: _Ending) -> TrackedRun:
    if ending.artifacts is not None:
        link.client.log_artifacts(link.run_id, str(ending.artifacts), "report")
    name, version, not_candidate = None, None, None
    if ending.model is not None:
        registered = register(link, ending.model)
        name, version, not_candidate = ending.model.registered_name, registered.version, registered.not_candidate
    # A finished run stays finished: a command that is stopped while it repeats the end takes nothing away.
    if link.client.get_run(link.run_id).info.status not in (ending.status, "FINISHED"):
        link.client.set_terminated(link.run_id, ending.status)
    return TrackedRun(link.run_id, name, version, link.experiment_id, not_candidate)
