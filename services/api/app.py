"""The control plane: jobs, sweeps, models and data checks over HTTP. It stands beside the cluster and outlives it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer

from datasets_manifest.errors import InputError
from services import promotion, registry
from services.api.models import (
    NAME_PATTERN,
    CheckIn,
    JobIn,
    JobOut,
    JobPage,
    ModelOut,
    ModelPage,
    PromoteIn,
    PromotionOut,
    SweepIn,
)  # fmt: skip
from services.api.requests import ApiConfig, check_request, sweep_request, train_request
from services.jobs import jobs
from services.jobs.job_request import ID_PATTERN, JobRequest, Kind
from services.web.http import (
    BodyLimit,
    Caller,
    Problem,
    ProblemBody,
    install_problems,
    problem_response,
    require_scope,
)

MAX_BODY = 1_000_000
_HASH = "m2can.request_sha256"


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "content": {"application/problem+json": {}}}
    for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 503)
}
Identity = Annotated[str, InPath(pattern=ID_PATTERN, examples=["train-1123-120000-3fa1c2"])]
Name = Annotated[str, InPath(pattern=NAME_PATTERN, examples=["m2can-mountain"])]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(pattern=ID_PATTERN)]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The same key never makes two jobs."),
]


def make_api(config: ApiConfig) -> FastAPI:
    """The app."""
    app = FastAPI(
        title="M2CAN control plane",
        version="1",
        responses=_ERRORS,
        dependencies=[Depends(HTTPBearer(auto_error=False)), Depends(_only_known_parameters)],
    )
    install_problems(app)
    _install_guard(app, config)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY)
    _add_jobs(app, config)
    _add_models(app, config)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    return app


async def _only_known_parameters(request: Request) -> None:
    """A misspelt parameter would be ignored, and the answer be to another question."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            raise Problem(422, f"{name!r} is no parameter here; known are: {', '.join(sorted(known)) or 'none'}")


def _install_guard(app: FastAPI, config: ApiConfig) -> None:
    @app.middleware("http")
    async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.client.host if request.client else "?"
        who = f"unknown from {host}"
        try:
            if not request.url.path.startswith("/v1/"):
                return await call_next(request)
            try:
                caller = config.tokens.identify(request.headers.get("authorization"))
            except Problem:
                config.rate.take(who)  # guessing tokens is slow, too
                raise
            who = caller.name
            config.rate.take(who)
            request.state.caller = caller
            response = await call_next(request)
        except Problem as problem:
            response = problem_response(problem)
        config.audit.write(
            caller=who, host=host, method=request.method, path=request.url.path, status=response.status_code
        )
        return response


def _may(request: Request, scope: Any) -> Caller:
    caller: Caller = request.state.caller
    require_scope(caller, scope)
    return caller


def _add_jobs(app: FastAPI, config: ApiConfig) -> None:
    server = config.jobs
    submitting = asyncio.Lock()

    async def submit(caller: Caller, kind: Kind, key: str | None, make: Callable[[str], JobRequest]) -> JobOut:
        """One job for one key: its id is made of the key, so that the cluster itself remembers, whatever restarts."""
        if key is None:
            identity = jobs.new_id(kind)
        else:
            identity = f"{kind}-{hashlib.sha256(f'{caller.name}/{key}'.encode()).hexdigest()[:20]}"
        request = await asyncio.to_thread(make, identity)
        digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        async with submitting:
            known = await asyncio.to_thread(server.find, identity)
            if known is None:
                metadata = {_HASH: digest, "m2can.by": caller.name}
                return _out(await asyncio.to_thread(server.submit, request, metadata))
        if known.metadata.get(_HASH) != digest:
            raise Problem(409, "this Idempotency-Key was used for another request; use a new key")
        return _out(known)

    def page(found: list[jobs.Job], limit: int, cursor: str | None) -> JobPage:
        ids = [job.id for job in found]
        if cursor is not None and cursor not in ids:
            raise Problem(404, "the cursor's job is gone; begin without cursor")
        start = ids.index(cursor) if cursor is not None else 0
        following = ids[start + limit] if start + limit < len(ids) else None
        return JobPage(jobs=[_out(job) for job in found[start : start + limit]], next=following)

    async def find(identity: str) -> jobs.Job:
        job = await asyncio.to_thread(server.find, identity)
        if job is None:
            raise Problem(404, "there is no such job; GET /v1/jobs lists them")
        return job

    @app.post("/v1/jobs", status_code=202, tags=["jobs"])
    async def create_job(body: JobIn, request: Request, key: Key = None) -> JobOut:
        caller = _may(request, "submit")
        return await submit(caller, "train", key, lambda identity: train_request(identity, body.recipe, config))

    @app.get("/v1/jobs", tags=["jobs"])
    async def list_jobs(request: Request, limit: Limit = 50, cursor: Cursor = None) -> JobPage:
        _may(request, "read")
        return page(await asyncio.to_thread(server.list), limit, cursor)

    @app.get("/v1/jobs/{identity}", tags=["jobs"])
    async def get_job(identity: Identity, request: Request) -> JobOut:
        _may(request, "read")
        return _out(await find(identity))

    @app.get("/v1/jobs/{identity}/logs", tags=["jobs"], response_class=PlainTextResponse)
    async def get_logs(identity: Identity, request: Request, follow: bool = False) -> Response:
        """What the job printed; with `follow`, a stream until it ends."""
        _may(request, "read")
        await find(identity)
        if follow:
            return StreamingResponse(server.follow(identity), media_type="text/plain; charset=utf-8")
        return PlainTextResponse(await asyncio.to_thread(server.logs, identity))

    @app.post("/v1/jobs/{identity}/stop", tags=["jobs"])
    async def stop_job(identity: Identity, request: Request) -> JobOut:
        _may(request, "submit")
        await find(identity)
        return _out(await asyncio.to_thread(server.stop, identity))

    @app.delete("/v1/jobs/{identity}", status_code=204, tags=["jobs"])
    async def delete_job(identity: Identity, request: Request) -> None:
        _may(request, "admin")
        if not (await find(identity)).has_ended:
            raise Problem(409, "the job has not ended; stop it first")
        await asyncio.to_thread(server.delete, identity)

    @app.post("/v1/sweeps", status_code=202, tags=["sweeps"])
    async def create_sweep(body: SweepIn, request: Request, key: Key = None) -> JobOut:
        caller = _may(request, "submit")
        return await submit(
            caller, "tune", key, lambda identity: sweep_request(identity, body.sweep, body.recipe, config)
        )

    @app.get("/v1/sweeps", tags=["sweeps"])
    async def list_sweeps(request: Request, limit: Limit = 50, cursor: Cursor = None) -> JobPage:
        _may(request, "read")
        return page([job for job in await asyncio.to_thread(server.list) if job.kind == "tune"], limit, cursor)

    @app.post("/v1/data/check", status_code=202, tags=["data"])
    async def check_data(body: CheckIn, request: Request, key: Key = None) -> JobOut:
        """Look at data sets, as a job: its logs hold the report."""
        caller = _may(request, "submit")
        return await submit(caller, "data-check", key, lambda identity: check_request(identity, body.manifests, config))


def _add_models(app: FastAPI, config: ApiConfig) -> None:
    async def look_up(reference: str) -> registry.ModelVersion:
        try:
            return await asyncio.to_thread(lambda: registry.find_model(config.registry(), reference))
        except InputError as error:
            raise Problem(404, str(error)) from None

    @app.get("/v1/models", tags=["models"])
    async def list_models(
        request: Request, limit: Limit = 50, cursor: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None
    ) -> ModelPage:
        """The newest version of every model."""
        _may(request, "read")
        found = await asyncio.to_thread(lambda: registry.list_models(config.registry()))
        rest = [version for version in found if cursor is None or version.name >= cursor]
        following = rest[limit].name if limit < len(rest) else None
        return ModelPage(models=[_model(version) for version in rest[:limit]], next=following)

    @app.get("/v1/models/{name}", tags=["models"])
    async def get_model(
        name: Name, request: Request, version: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}$")] = None
    ) -> ModelOut:
        _may(request, "read")
        return _model(await look_up(f"{name}:{version}" if version else name))

    @app.post("/v1/models/{name}/promote", tags=["models"])
    async def promote(name: Name, body: PromoteIn, request: Request) -> PromotionOut:
        """Point an alias at a version; services that serve it take it up at once."""
        caller = _may(request, "admin")
        await look_up(f"{name}:{body.version}")
        record = await asyncio.to_thread(
            lambda: promotion.promote(config.registry(), f"{name}:{body.version}", body.alias, by=caller.name)
        )
        return PromotionOut.model_validate(record.as_dict())


def _out(job: jobs.Job) -> JobOut:
    return JobOut.model_validate(job.as_dict())


def _model(version: registry.ModelVersion) -> ModelOut:
    return ModelOut.model_validate(json.loads(json.dumps(version.as_dict())))
