"""Ray Jobs: submit, list, follow, stop, delete. The entrypoint is constant; no input of a user reaches a shell."""

from __future__ import annotations

import logging
import math
import os
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.manifest.catalog import DATA_ROOT
from services.errors import ServiceUnavailable
from services.jobs.job_log import OwnLines, waits_for
from services.jobs.job_request import VARIABLE, JobRequest, check_id
from services.jobs.working_folder import CodePackage, pack_code
from trainers.tracking.provenance import JOB_ID_VARIABLE

ENTRYPOINT = "python -m services.cli.job_entrypoint"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
CLOSING_S = 20.0  # after the grace: the MLflow run is closed, Ray ends
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_connecting = threading.Lock()
BY = "m2can.by"  # in a job's metadata: who submitted it
_OURS, _RUN_NAME, _SUBMITTED = "m2can.kind", "m2can.run_name", "m2can.submitted"  # keys of a job's metadata
_STATUSES = tuple(status.value for status in JobStatus)
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

# Ray's client logs each upload and each end of a stream to standard error, among the job's output.
for _logger in ("ray", *(base.__module__ for base in JobSubmissionClient.__mro__)):
    logging.getLogger(_logger).setLevel(logging.WARNING)


class JobsUnavailable(ServiceUnavailable):
    """The cluster's job server does not answer, or refuses."""


def _token_fault() -> str:
    """Whether a token is missing here or refused there: Ray raises the same error for both."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" not in os.environ and not file.is_file():
        return f"no token here: {file} is not there; copy the cluster's to it with mode 600 and set RAY_AUTH_MODE=token"
    return "the job server refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True)
class Job:
    """One job as it is shown. Its environment variables are left out: they may hold secrets."""

    id: str
    kind: str
    status: str
    run_name: str
    message: str
    submitted: str
    ended: str | None
    metadata: dict[str, str]

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED


def job_variables(request: JobRequest, encoded: str) -> dict[str, str]:
    """The environment of a job: its request, its id, the data root, and how long Ray waits when it is stopped."""
    variables = {VARIABLE: encoded, JOB_ID_VARIABLE: request.id}
    if request.grace_s is not None:  # without it Ray kills a job 3 s after it was asked to stop
        variables[STOP_WAIT] = str(math.ceil(request.grace_s + CLOSING_S))
    if os.environ.get(DATA_ROOT):
        variables[DATA_ROOT] = os.environ[DATA_ROOT]
    return variables


def new_id(kind: str) -> str:
    """`<kind>-<day and time>-<random>`: sorts by time, and two at once differ."""
    return f"{kind}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(3)}"


class JobServer:
    """Ray's job server at `address` (http://…), at RAY_API_SERVER_ADDRESS, or of the cluster that runs on this machine.

    Each call connects anew: the cluster may start later than this process, or be replaced. With RAY_AUTH_MODE=token the
    token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token is sent.

    Raises:
        InputError: an address of another kind.
        JobsUnavailable: from every method: the server does not answer, or refuses.
    """

    def __init__(self, address: str | None = None) -> None:
        if address is not None and not address.startswith(("http://", "https://")):
            wanted = "http://HOST:8265"
            raise InputError("is not a job server's address", field="--address", value=address, wanted=wanted)
        self.address = address

    @contextmanager
    def client(self) -> Iterator[JobSubmissionClient]:
        """Ray's client, whose errors become JobsUnavailable."""
        at = f" at {self.address}" if self.address else ""
        try:
            with _environment_address(self.address):
                client = JobSubmissionClient(self.address)
            yield client
        except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            why = f"{first_line(error)}); is the dashboard up and --address right?"
            raise JobsUnavailable(f"no job server answers{at} ({why}") from None
        except AuthenticationError:
            raise JobsUnavailable(_token_fault()) from None
        except RuntimeError as error:
            raise JobsUnavailable(f"the job server refused: {first_line(error)}") from None

    def submit(
        self,
        request: JobRequest,
        metadata: dict[str, str] | None = None,
        on_code: Callable[[CodePackage], None] = lambda code: None,
    ) -> Job:
        """Send code and request. `metadata` is stored with the job.

        Raises:
            InputError: the id is taken, or code or request are too large.
        """
        encoded = request.encoded()
        if self.find(request.id) is not None:
            raise InputError("there is a job of this id", field="--id", value=request.id, wanted="an id of its own")
        submitted = datetime.now(UTC).isoformat(timespec="seconds")
        metadata = {**(metadata or {}), _OURS: request.kind, _RUN_NAME: request.run_name, _SUBMITTED: submitted}
        metadata |= {
            f"m2can.environment.{key}": str(request.environment[key])
            for key in ("hash", "python")
            if key in request.environment
        }
        variables = job_variables(request, encoded)
        with tempfile.TemporaryDirectory(prefix="m2can-code-") as folder, self.client() as client:
            code = pack_code(Path(folder))
            on_code(code)
            client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=request.id,
                metadata=metadata | {"m2can.code_bytes": str(code.bytes)},
                runtime_env={"working_dir": folder, "env_vars": variables},
            )
        return self.get(request.id)

    def find(self, identity: str) -> Job | None:
        """The job of this id, if there is one; its message says what it waits for."""
        check_id(identity)
        with self.client() as client:
            job = _find(client, identity)
            return job and _with_wait(client, job)

    def get(self, identity: str) -> Job:
        """Raises InputError: there is no such job."""
        job = self.find(identity)
        if job is None:
            wanted = "one that `m2can jobs list` shows"
            raise InputError("there is no such job", field="ID", value=identity, wanted=wanted)
        return job

    def list_jobs(self, status: str | None = None, run_name: str | None = None, *, waits: bool = True) -> list[Job]:
        """Our jobs, newest first; only those of a status, or that worked on a run or sweep.

        Args:
            waits: say in their messages what those that run wait for, which reads their logs.

        Raises:
            InputError: no such status.
        """
        if status is not None and status not in _STATUSES:
            raise InputError("is no status", field="--status", value=status, wanted=", ".join(_STATUSES))
        with self.client() as client:
            found = client.list_jobs()
        ours = [job for job in found if job.submission_id and _OURS in (job.metadata or {})]
        newest = sorted(ours, key=lambda job: (job.start_time or 0, job.submission_id), reverse=True)
        fits = [job for job in map(_job, newest) if status in (None, job.status)]
        shown = [job for job in fits if run_name in (None, job.run_name)]
        if not waits:
            return shown
        with self.client() as client:
            return [_with_wait(client, job) for job in shown]

    def logs(self, identity: str) -> str:
        """All a job has printed, without what Ray tells of its own processes."""
        self.get(identity)
        with self.client() as client:
            return "".join(OwnLines().of(str(client.get_job_logs(identity)), last=True))

    async def follow(self, identity: str) -> AsyncIterator[str]:
        """What a job has printed and prints, until it ends. Raises JobsUnavailable: the stream broke off."""
        self.get(identity)
        with self.client() as client:
            own = OwnLines()
            async for lines in client.tail_job_logs(identity):
                for line in own.of(lines):
                    yield line
            for line in own.of("", last=True):
                yield line

    def stop(self, identity: str) -> Job:
        """Ask a job to stop; one that has ended stays as it is."""
        if not self.get(identity).has_ended:
            with self.client() as client:
                client.stop_job(identity)
        return self.get(identity)

    def delete(self, identity: str) -> None:
        """Remove an ended job with its logs; run, checkpoints and MLflow run stay.

        Raises:
            InputError: it has not ended.
        """
        job = self.get(identity)
        if not job.has_ended:
            wanted = f"an ended job; `m2can jobs stop {identity}` ends it"
            raise InputError("has not ended", field="ID", value=f"{identity}, {job.status}", wanted=wanted)
        with self.client() as client:
            client.delete_job(identity)

    def wait(self, identity: str, every_s: float = 1.0) -> Job:
        """Block until the job has ended."""
        job = self.get(identity)
        with self.client() as client:
            while not job.has_ended:
                time.sleep(every_s)
                job = _find(client, identity) or self.get(identity)
        return job


def _find(client: JobSubmissionClient, identity: str) -> Job | None:
    # Ray's client reports a missing job only by the text of an error, so the list is searched.
    return next((_job(found) for found in client.list_jobs() if found.submission_id == identity), None)


def _with_wait(client: JobSubmissionClient, job: Job) -> Job:
    """A job that runs may wait for resources; its log says so."""
    if job.status != JobStatus.RUNNING.value:
        return job
    try:
        waits = waits_for(client.get_job_logs(job.id))
    except RuntimeError:  # the node that has the log does not answer, or the job was deleted meanwhile
        return job
    return replace(job, message=waits) if waits else job


def _job(details: JobDetails) -> Job:
    metadata = {key: value for key, value in (details.metadata or {}).items() if key.startswith("m2can.")}
    return Job(
        id=str(details.submission_id),
        kind=metadata.pop(_OURS, "?"),
        status=JobStatus(details.status).value,
        run_name=metadata.pop(_RUN_NAME, ""),
        message=_one_line(details.message),
        submitted=metadata.pop(_SUBMITTED, _time(details.start_time) or ""),
        ended=_time(details.end_time),
        metadata=metadata,
    )


def _one_line(message: str | None) -> str:
    """First and last line of Ray's message, which ends with the end of the log."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:500]


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


@contextmanager
def _environment_address(address: str | None) -> Iterator[None]:
    """Set RAY_API_SERVER_ADDRESS to `address`: Ray's client prefers the variable to its own argument."""
    if address is None:
        yield
        return
    with _connecting:
        before = os.environ.get(_ADDRESS)
        os.environ[_ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[_ADDRESS]
            if before is not None:
                os.environ[_ADDRESS] = before
