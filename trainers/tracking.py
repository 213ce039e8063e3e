"""The one writer to MLflow: it stands beside the driver, reads the journal and sends what MLflow does not have yet.

    controller ──after_report──▶ journal/epoch-00001.json … ──Sender──▶ MLflow run, pictures, model, registry

Training never waits for MLflow and never fails with it. What was sent is known from MLflow itself: an epoch goes out in
one batch with a metric `epoch`, and the epochs found there are not sent again. So a sender that is killed anywhere, or
cut off after its batch arrived, is followed by another of the same run name that sends the rest once.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from datasets_manifest.errors import InputError
from trainers.journal import Journal
from trainers.mlflow_run import RunLink, open_client, open_experiment, resolve_tracking_uri
from trainers.registration import ModelToLog, register

__all__ = [
    "ModelToLog",
    "Sender",
    "TrackedRun",
    "TrackingUnavailable",
    "open_client",
    "open_experiment",
    "resolve_tracking_uri",
]

_log = logging.getLogger(__name__)

_AWAY = (MlflowException, requests.RequestException, SQLAlchemyError, OSError)
# Answers that another attempt will not change.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "UNAUTHENTICATED")
_LONGEST_PAUSE_S = 15.0


class TrackingUnavailable(RuntimeError):
    """MLflow was away, or refused, until the end. Nothing is lost: the journal and the checkpoints hold it all."""


@dataclass(frozen=True)
class TrackedRun:
    """Where a run is found in MLflow; name and version are None if no model was registered."""

    run_id: str
    model_name: str | None
    model_version: str | None


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
        interval_s: seconds between two looks at the journal.
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
        self._params, self._tags, self._storage, self._interval_s = params, tags, storage, interval_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._link: RunLink | None = None
        self._ending: _Ending | None = None
        self._away_since: float | None = None
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
            deadline_s: seconds MLflow may be away in a row before this gives up. An upload under way is not cut off.

        Raises:
            TrackingUnavailable: MLflow stayed away or refused.
        """
        if artifacts is not None and not artifacts.is_dir():
            raise FileNotFoundError(f"{artifacts}: no such folder to log")
        ending = _Ending(status, artifacts, model)
        # Away until the next answer: whatever was known of MLflow before may be out of date.
        self._ending, self._away_since = ending, time.monotonic()
        self._wake.set()
        self.start()
        while not ending.done.done():
            since = self._away_since
            left = deadline_s if since is None else since + deadline_s - time.monotonic()
            if left <= 0:
                self._ending = None
                break
            wait([ending.done], timeout=min(left, 0.5))
        self.stop()
        if not ending.done.done():
            raise TrackingUnavailable(self._farewell(f"was away for {deadline_s:g} s")) from self._last_error
        return ending.done.result()

    def stop(self) -> None:
        """Stop sending without ending the run; what is left goes out when a run of this name is started again."""
        with self._lock:
            self._stopping = True
        self._wake.set()

    def _farewell(self, what: str) -> str:
        cause = f" ({_line(self._last_error)})" if self._last_error is not None else ""
        return (
            f"MLflow at {self.uri} {what}{cause}. Nothing is lost: the journal {self.journal.folder} and the checkpoints "
            f"beside it keep everything, and it is sent, once, when a run named {self.run_name} is started again."
        )

    def _work(self) -> None:
        pause = self._interval_s
        while True:
            # Cleared before the look at what is asked: a request that comes during it wakes the next wait.
            self._wake.clear()
            ending = self._ending
            try:
                self._send_news()
                self._note_answer()
                pause = self._interval_s
                if ending is not None and not ending.done.done():
                    ending.done.set_result(self._conclude(ending))
            except Exception as error:
                self._link = None  # what MLflow has is read from it again
                self._note_failure(error, ending)
                pause = min(max(2 * pause, 0.5), _LONGEST_PAUSE_S)
            with self._lock:
                if self._stopping:
                    self._thread = None
                    return
            self._wake.wait(pause)

    def _note_answer(self) -> None:
        self._away_since = None
        if self._warned:
            _log.warning("MLflow at %s is back; the journal has been sent", self.uri)
        self._warned = False

    def _note_failure(self, error: Exception, ending: _Ending | None) -> None:
        self._last_error = error
        if self._away_since is None:
            self._away_since = time.monotonic()
        refused = isinstance(error, MlflowException) and error.error_code in _REFUSALS
        if ending is not None and (refused or not isinstance(error, _AWAY)):
            failure = TrackingUnavailable(self._farewell("refused")) if refused else error
            failure.__cause__ = error if refused else None
            ending.done.set_exception(failure)
        elif not self._warned:
            self._warned = True
            _log.warning(
                "MLflow at %s does not take the run's records, training goes on; the journal %s keeps them until it does: %s",
                self.uri,
                self.journal.folder,
                _line(error),
            )

    def _send_news(self) -> None:
        if self._link is None:
            self._link = self._connect()
        self.run_id = self._link.run_id
        for record in self.journal.read(known=self._link.sent):
            self._link.send(record)

    def _connect(self) -> RunLink:
        """Find or make the MLflow run, and read from it what was sent before."""
        link = RunLink.open(self.uri, self.experiment, self._storage, self.run_name, self._tags)
        link.log_params(self._params)
        return link

    def _conclude(self, ending: _Ending) -> TrackedRun:
        assert self._link is not None
        client, run_id = self._link.client, self._link.run_id
        if ending.artifacts is not None:
            client.log_artifacts(run_id, str(ending.artifacts), "report")
        version = register(client, self._link.experiment_id, run_id, ending.model) if ending.model is not None else None
        if client.get_run(run_id).info.status != ending.status:
            client.set_terminated(run_id, ending.status)
        return TrackedRun(run_id, ending.model.registered_name if ending.model is not None else None, version)


class _Ending:
    """What `finish` asks of the thread, and its answer."""

    def __init__(self, status: str, artifacts: Path | None, model: ModelToLog | None) -> None:
        self.status, self.artifacts, self.model = status, artifacts, model
        self.done: Future[TrackedRun] = Future()


def _line(error: Exception | None) -> str:
    """The first line of an error, short: MLflow's repeat the whole request."""
    text = str(error).strip() or repr(error)
    return f"{text.splitlines()[0][:300]}"
