"""The control plane: jobs, sweeps, models and data checks over HTTP. It runs beside the cluster and outlives it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer

from datasets_manifest.errors import InputError
from services import promotion, registry
from services.api.models import NAME_PATTERN, CheckIn, JobIn, JobPage, ModelOut, ModelPage, PromoteIn, SweepIn
from services.api.requests import ApiConfig, check_request, sweep_request, train_request
from services.jobs.job_request import ID_PATTERN, JobRequest, Kind
from services.jobs.jobs import BY, Job, new_id
from services.promotion import Promotion
from services.web.auth import Caller, Scope, require_scope
from services.web.body_limit import BodyLimit
from services.web.own_host import LOOPBACK, OwnHost
from services.web.problems import Problem, documented, install_problems, problem_response
from trainers.tracking import registered_models
from trainers.tracking.registered_models import ModelVersion

MAX_BODY = 1_000_000  # bytes
_HASH = "m2can.request_sha256"
_ERRORS = documented(400, 401, 403, 404, 405, 409, 413, 422, 429, 503)
router = APIRouter()


def make_api(config: ApiConfig) -> FastAPI:
    """The app."""
    app = FastAPI(
        title="M2CAN control plane",
        version="1",
        responses=_ERRORS,
        dependencies=[Depends(HTTPBearer(auto_error=False)), Depends(_check_parameters)],
    )
    app.state.config, app.state.submitting = config, asyncio.Lock()
    install_problems(app)
    # What is added later comes first: who asks is known, counted and written down before a body is refused.
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY)
    app.middleware("http")(_authenticate)
    if not len(config.tokens):
        app.add_middleware(OwnHost, names=(*LOOPBACK, *config.allowed_hosts))
    app.include_router(router)
    return app


async def _authenticate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Identify the caller, count the request against its rate limit, write the audit log."""
    if not request.url.path.startswith("/v1/"):
        return await call_next(request)
    config: ApiConfig = request.app.state.config
    host = request.client.host if request.client else "?"
    name = f"unknown from {host}"
    try:
        try:
            caller = config.tokens.identify(request.headers.get("authorization"))
        except Problem:
            config.rate.take(name)  # slows down guessing of tokens
            raise
        name = caller.name
        config.rate.take(name)
        request.state.caller = caller
        response = await call_next(request)
    except Problem as problem:
        response = problem_response(problem)
    entry = {"method": request.method, "path": request.url.path, "status": response.status_code}
    config.audit.write(caller=name, host=host, **entry)
    return response


async def _check_parameters(request: Request) -> None:
    """FastAPI ignores a misspelt query parameter and all but the last of a repeated one; the response would then answer another
    question."""
    operations = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    parameters = operations.get(request.method.lower(), {}).get("parameters", [])
    known = sorted(parameter["name"] for parameter in parameters if parameter["in"] == "query")
    for name in request.query_params:
        if name not in known:
            raise Problem(422, f"{name!r} is no parameter here; known are: {', '.join(known) or 'none'}")
        if (times := len(request.query_params.getlist(name))) > 1:
            raise Problem(422, f"{name!r} is given {times} times; once is allowed")


def _needs(scope: Scope) -> Any:
    async def caller(request: Request) -> Caller:
        require_scope(request.state.caller, scope)
        return request.state.caller

    return Depends(caller)


async def _config(request: Request) -> ApiConfig:
    return request.app.state.config


READ, SUBMIT, ADMIN = _needs("read"), _needs("submit"), _needs("admin")
Config = Annotated[ApiConfig, Depends(_config)]
Identity = Annotated[str, InPath(pattern=ID_PATTERN, examples=["train-1123-120000-3fa1c2"])]
Name = Annotated[str, InPath(pattern=NAME_PATTERN, examples=["m2can-mountain"])]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(pattern=ID_PATTERN)]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The same key never makes two jobs."),
]


def _known_job(identity: Identity, config: Config) -> Job:
    job = config.jobs.find(identity)
    if job is None:
        raise Problem(404, "there is no such job; GET /v1/jobs lists them")
    return job


KnownJob = Annotated[Job, Depends(_known_job)]


@router.get("/healthz", include_in_schema=False)
async def healthz() -> PlainTextResponse:
    return PlainTextResponse("ok")


@router.post("/v1/jobs", status_code=202, tags=["jobs"])
async def create_job(
    body: JobIn, request: Request, config: Config, caller: Annotated[Caller, SUBMIT], key: Key = None
) -> Job:
    def make(identity: str) -> JobRequest:
        made = train_request(identity, body.recipe, config, caller)
        return made.model_copy(update={"max_running": body.max_running})

    return await _submit(request, caller, "train", key, make)


@router.get("/v1/jobs", tags=["jobs"], dependencies=[READ])
def list_jobs(config: Config, limit: Limit = 50, cursor: Cursor = None) -> JobPage:
    return _page(config.jobs.list_jobs(), limit, cursor)


@router.get("/v1/jobs/{identity}", tags=["jobs"], dependencies=[READ])
def get_job(job: KnownJob) -> Job:
    return job


@router.get("/v1/jobs/{identity}/logs", tags=["jobs"], response_class=PlainTextResponse, dependencies=[READ])
def get_logs(job: KnownJob, config: Config, follow: bool = False) -> Response:
    """What the job printed; with `follow`, a stream until it ends."""
    if follow:
        return StreamingResponse(config.jobs.follow(job.id), media_type="text/plain; charset=utf-8")
    return PlainTextResponse(config.jobs.logs(job.id))


@router.post("/v1/jobs/{identity}/stop", tags=["jobs"], dependencies=[SUBMIT])
def stop_job(job: KnownJob, config: Config) -> Job:
    return config.jobs.stop(job.id)


@router.delete("/v1/jobs/{identity}", status_code=204, tags=["jobs"], dependencies=[ADMIN])
def delete_job(job: KnownJob, config: Config) -> None:
    if not job.has_ended:
        raise Problem(409, "the job has not ended; stop it first")
    config.jobs.delete(job.id)


@router.post("/v1/sweeps", status_code=202, tags=["sweeps"])
async def create_sweep(
    body: SweepIn, request: Request, config: Config, caller: Annotated[Caller, SUBMIT], key: Key = None
) -> Job:
    def make(identity: str) -> JobRequest:
        made = sweep_request(identity, body.sweep, body.recipe, config, caller)
        return made.model_copy(update={"max_running": body.max_running})

    return await _submit(request, caller, "tune", key, make)


@router.get("/v1/sweeps", tags=["sweeps"], dependencies=[READ])
def list_sweeps(config: Config, limit: Limit = 50, cursor: Cursor = None) -> JobPage:
    return _page([job for job in config.jobs.list_jobs() if job.kind == "tune"], limit, cursor)


@router.post("/v1/data/check", status_code=202, tags=["data"])
async def check_data(
    body: CheckIn, request: Request, config: Config, caller: Annotated[Caller, SUBMIT], key: Key = None
) -> Job:
    """Check data sets, as a job: its logs hold the report."""

    def make(identity: str) -> JobRequest:
        return check_request(identity, body.manifests, config)

    return await _submit(request, caller, "data-check", key, make)


@router.get("/v1/models", tags=["models"], response_model=ModelPage, dependencies=[READ])
def list_models(
    config: Config, limit: Limit = 50, cursor: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None
) -> dict[str, Any]:
    """The newest version of every model."""
    found = registry.list_models(config.registry())
    rest = [version for version in found if cursor is None or version.name >= cursor]
    return {"models": rest[:limit], "next": rest[limit].name if limit < len(rest) else None}


@router.get("/v1/models/{name}", tags=["models"], response_model=ModelOut, dependencies=[READ])
def get_model(
    name: Name, config: Config, version: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}$")] = None
) -> ModelVersion:
    return _known_model(config, f"{name}:{version}" if version else name)


@router.post("/v1/models/{name}/promote", tags=["models"])
def promote(name: Name, body: PromoteIn, config: Config, caller: Annotated[Caller, ADMIN]) -> Promotion:
    """Point an alias at a version; services that serve it switch to it at once."""
    reference = f"{name}:{body.version}"
    _known_model(config, reference)
    return promotion.promote(config.registry(), reference, body.alias, by=caller.name)


async def _submit(
    request: Request, caller: Caller, kind: Kind, key: str | None, make: Callable[[str], JobRequest]
) -> Job:
    """Submit one job a key. The job's id is made from the key, so the cluster itself knows which keys were used."""
    server = request.app.state.config.jobs
    of_key = hashlib.sha256(f"{caller.name}/{key}".encode()).hexdigest()[:20]
    identity = new_id(kind) if key is None else f"{kind}-{of_key}"
    job_request = await asyncio.to_thread(make, identity)
    digest = hashlib.sha256(job_request.model_dump_json().encode()).hexdigest()
    async with request.app.state.submitting:
        known: Job | None = await asyncio.to_thread(server.find, identity)
        if known is None:
            await asyncio.to_thread(_require_room, request.app.state.config, caller)
            metadata = {_HASH: digest, BY: caller.name}
            return await asyncio.to_thread(server.submit, job_request, metadata)
    if known.metadata.get(_HASH) != digest:
        raise Problem(409, "this Idempotency-Key was used for another request; use a new key")
    return known


def _require_room(config: ApiConfig, caller: Caller) -> None:
    """Raises Problem: 429, as many jobs of this caller as it may have wait or run already."""
    jobs = config.jobs.list_jobs()
    open_ = sum(not job.has_ended and job.metadata.get(BY) == caller.name for job in jobs)
    if open_ >= config.most_jobs:
        raise Problem(
            429, f"{open_} jobs of {caller.name} have not ended; at most {config.most_jobs} may", {"Retry-After": "60"}
        )


def _page(found: list[Job], limit: int, cursor: str | None) -> JobPage:
    ids = [job.id for job in found]
    if cursor is not None and cursor not in ids:
        raise Problem(404, "the cursor's job is gone; begin without cursor")
    start = ids.index(cursor) if cursor is not None else 0
    following = ids[start + limit] if start + limit < len(ids) else None
    return JobPage(jobs=found[start : start + limit], next=following)


def _known_model(config: ApiConfig, reference: str) -> ModelVersion:
    try:
        return registered_models.find_model(config.registry(), reference)
    except InputError as error:
        raise Problem(404, str(error)) from None
