"""Ray Jobs: submit, list, look at, follow, stop, delete. The entrypoint is constant; nothing of a user's reaches a shell."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.catalog import DATA_ROOT
from services.errors import ServiceUnavailable
from services.jobs.job_request import VARIABLE, JobRequest, check_id
from services.jobs.working_folder import CodePackage, pack_code
from trainers.tracking.provenance import JOB_ID_VARIABLE

ENTRYPOINT = "python -m services.cli.job_entrypoint"
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_connecting = threading.Lock()
_OURS = "m2can.kind"
_STATUSES = tuple(status.value for status in JobStatus)
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

# Ray's client tells each upload and each end of a stream; standard error is the job's output and ours.
for _name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_name}").setLevel(logging.WARNING)


class JobsUnavailable(ServiceUnavailable):
    """The cluster's job server does not answer, or refuses."""


@dataclass(frozen=True)
class Job:
    """One job as people see it; its environment is left out, for it may hold more than is ours to show."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def new_id(kind: str) -> str:
    """`<kind>-<day and time>-<random>`: sorts by time, and two at once differ."""
    return f"{kind}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def connect(address: str | None = None) -> JobSubmissionClient:
    """The job server at `address` (http://…), RAY_API_SERVER_ADDRESS, or the cluster that runs here. The token of
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token goes along when RAY_AUTH_MODE is `token`.

    Raises:
        InputError: an address of another kind.
        JobsUnavailable: nobody answers there, or the token is refused.
    """
    if address is not None and not address.startswith(("http://", "https://")):
        raise InputError("is not a job server's address", field="--address", value=address, wanted="http://HOST:8265")
    with _answers(address), _only(address):
        return JobSubmissionClient(address)


def submit(
    client: JobSubmissionClient,
    request: JobRequest,
    *,
    on_code: Callable[[CodePackage], None] = lambda code: None,
    metadata: dict[str, str] | None = None,
) -> Job:
    """Send code and request; `metadata` is kept with the job.

    Raises:
        InputError: the id is taken, or code or request are too large.
    """
    encoded = request.encoded()
    if _details(client, request.id) is not None:
        raise InputError("there is a job of this id", field="--id", value=request.id, wanted="an id of its own")
    environment = {key: str(value) for key, value in request.environment.items() if key in ("hash", "python")}
    metadata = {**(metadata or {}), _OURS: request.kind, "m2can.run_name": request.run_name, "m2can.submitted": _now()}
    metadata |= {f"m2can.environment.{key}": value for key, value in environment.items()}
    with tempfile.TemporaryDirectory(prefix="m2can-code-") as folder, _answers(None):
        code = pack_code(Path(folder))
        on_code(code)
        client.submit_job(
            entrypoint=ENTRYPOINT,
            submission_id=request.id,
            metadata=metadata | {"m2can.code_bytes": str(code.bytes)},
            runtime_env={
                "working_dir": folder,
                "env_vars": {VARIABLE: encoded, JOB_ID_VARIABLE: request.id, **_data_root()},
            },
        )
    return get(client, request.id)


def get(client: JobSubmissionClient, identity: str) -> Job:
    """Raises InputError: there is no such job."""
    details = _details(client, check_id(identity))
    if details is None:
        raise InputError("there is no such job", field="ID", value=identity, wanted="one that `m2can jobs list` shows")
    return _job(details)


def list_jobs(client: JobSubmissionClient, status: str | None = None, run_name: str | None = None) -> list[Job]:
    """Our jobs, newest first; only those of a status, or that worked on a run or sweep.

    Raises:
        InputError: no such status.
    """
    if status is not None and status not in _STATUSES:
        raise InputError("is no status", field="--status", value=status, wanted=", ".join(_STATUSES))
    with _answers(None):
        found = client.list_jobs()
    ours = [job for job in found if job.submission_id and _OURS in (job.metadata or {})]
    newest = sorted(ours, key=lambda job: (job.start_time or 0, job.submission_id), reverse=True)
    fits = [job for job in map(_job, newest) if status in (None, job.status)]
    return [job for job in fits if run_name in (None, job.run_name)]


def logs(client: JobSubmissionClient, identity: str) -> str:
    """All a job has printed."""
    get(client, identity)
    with _answers(None):
        return str(client.get_job_logs(identity))


async def follow(client: JobSubmissionClient, identity: str) -> AsyncIterator[str]:
    """What a job has printed and prints, until it ends. Raises JobsUnavailable: the stream broke off."""
    get(client, identity)
    with _answers(None):
        async for lines in client.tail_job_logs(identity):
            yield lines


def stop(client: JobSubmissionClient, identity: str) -> Job:
    """Ask a job to stop; one that has ended stays as it is."""
    if not get(client, identity).has_ended:
        with _answers(None):
            client.stop_job(identity)
    return get(client, identity)


def delete(client: JobSubmissionClient, identity: str) -> None:
    """Forget an ended job with its logs; run, checkpoints and MLflow run stay.

    Raises:
        InputError: it has not ended.
    """
    job = get(client, identity)
    if not job.has_ended:
        wanted = f"an ended job; `m2can jobs stop {identity}` ends it"
        raise InputError("has not ended", field="ID", value=f"{identity}, {job.status}", wanted=wanted)
    with _answers(None):
        client.delete_job(identity)


def wait(client: JobSubmissionClient, identity: str, every_s: float = 1.0) -> Job:
    """Block until the job has ended."""
    while not (job := get(client, identity)).has_ended:
        time.sleep(every_s)
    return job


def _data_root() -> dict[str, str]:
    """Where the catalog's data sets lie, if it was said here."""
    return {DATA_ROOT: os.environ[DATA_ROOT]} if os.environ.get(DATA_ROOT) else {}


def _details(client: JobSubmissionClient, identity: str) -> JobDetails | None:
    check_id(identity)
    with _answers(None):
        # Asked by listing: the client tells a missing job only by the words of an error.
        found = [job for job in client.list_jobs() if job.submission_id == identity]
    return found[0] if found else None


def _job(details: JobDetails) -> Job:
    metadata = {key: value for key, value in (details.metadata or {}).items() if key.startswith("m2can.")}
    status = details.status.value if isinstance(details.status, JobStatus) else str(details.status)
    return Job(
        id=str(details.submission_id),
        kind=metadata.pop(_OURS, "?"),
        status=status,
        run_name=metadata.pop("m2can.run_name", ""),
        message=_one_line(details.message),
        submitted=metadata.pop("m2can.submitted", _time(details.start_time) or ""),
        ended=_time(details.end_time),
        metadata=metadata,
    )


def _one_line(message: str | None) -> str:
    """The first and the last line: Ray appends the end of the log, whose last line says what went wrong."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))[:500]


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _only(address: str | None) -> Iterator[None]:
    """Ray's client takes the environment's address even where another one is given: the given one is put there."""
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


@contextmanager
def _answers(address: str | None) -> Iterator[None]:
    """Ray's errors of the job server in our words."""
    try:
        yield
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        place = f" at {address}" if address else ""
        raise JobsUnavailable(
            f"no job server answers{place} ({str(error).splitlines()[0][:200]}); is the dashboard up and --address right?"
        ) from None
    except AuthenticationError:
        raise JobsUnavailable(
            "the job server refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from None
    except RuntimeError as error:
        raise JobsUnavailable(f"the job server refused: {str(error).splitlines()[0][:300]}") from None
