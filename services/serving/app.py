"""The HTTP side of online inference: an ASGI app around a resolver of names and an engine that predicts. Imports no Ray."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.serving.admission import Admission
from services.serving.limits import Limits
from services.serving.samples import REQUEST_BODY, Sample, read_samples
from services.web.auth import Caller, Tokens, require_scope
from services.web.body_limit import BodyLimit
from services.web.problems import Problem, documented, install_problems

_REFERENCE = re.compile(r"[^@:/'\s]{1,200}(?:@[\w.-]{1,64}|:\d{1,9})?")
T = TypeVar("T")


class Names(Protocol):
    """Names → versions; services.serving.resolver.Resolver is one."""

    @property
    def names(self) -> list[str]: ...

    async def resolve(self, reference: str) -> tuple[str, str]: ...

    def age_s(self, name: str) -> float | None: ...


class Predicting(Protocol):
    """Predicts with `name:version`; services.serving.engine.Engine is one."""

    async def predict(self, model_id: str, samples: list[Sample], caller: str) -> list[dict[str, Any]]: ...

    async def ready(self, model_id: str) -> None: ...


class Model(BaseModel):
    """A model that is served, by the version that answers."""

    name: str
    version: str


class Models(BaseModel):
    models: list[Model]


class Prediction(BaseModel):
    """Of a sample; the fields of a line of `m2can predict --out FILE.jsonl`."""

    model_config = ConfigDict(extra="allow")

    label: str
    probs: dict[str, float]


class Answer(BaseModel):
    """What a request for predictions is answered with, a prediction a sample."""

    model: Model
    predictions: list[Prediction]


_REFUSALS = documented(400, 401, 403, 404, 405, 413, 415, 422, 429, 503, 504)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("m2can_requests", "Answers by status", ["status"], registry=self.registry)
        self.samples = Counter("m2can_samples", "Samples predicted", ["model"], registry=self.registry)
        self.seconds = Histogram("m2can_request_seconds", "Time to answer", registry=self.registry)
        self.in_flight = Gauge("m2can_in_flight", "Predictions under way", registry=self.registry)
        self.alias_age = Gauge(
            "m2can_alias_age_seconds", "Time since the registry last answered", ["model"], registry=self.registry
        )


def make_app(
    resolver: Names,
    engine: Predicting,
    tokens: Tokens,
    limits: Limits | None = None,
    admission: Admission | None = None,
) -> FastAPI:
    """The app. `/healthz` and `/readyz` need no token."""
    limits = limits or Limits()
    admission = admission or Admission(limits)
    app = FastAPI(title="M2CAN inference", version="1", docs_url=None, redoc_url=None)
    metrics = Metrics()
    metrics.in_flight.set_function(lambda: admission.under_way)
    install_problems(app)
    app.add_middleware(
        BodyLimit, max_bytes=limits.body_bytes, seconds=limits.body_s, bytes_per_s=limits.body_bytes_per_s
    )
    app.add_middleware(Measured, metrics=metrics)

    def identify(request: Request) -> Caller:
        """Raises Problem: 401, 403, or 429, too many requests of this token, or with unknown ones from this address."""
        try:
            caller = tokens.identify(request.headers.get("authorization"))
        except Problem:
            admission.count(f"unknown from {request.client.host if request.client else '?'}")
            raise
        admission.count(caller.name)
        require_scope(caller, "predict")
        return caller

    @app.post(
        "/v1/models/{reference}/predict",
        openapi_extra={"requestBody": REQUEST_BODY},
        responses={200: {"model": Answer}, **_REFUSALS},
    )
    async def predict(reference: str, request: Request) -> JSONResponse:
        caller = identify(request)
        with admission.admit(caller.name):
            try:
                async with asyncio.timeout(limits.timeout_s):
                    samples = await read_samples(request, limits)
                    name, version = await resolver.resolve(check_reference(reference))
                    answer = engine.predict(f"{name}:{version}", samples, caller.name)
                    predictions = await while_connected(request, answer)
            except TimeoutError:
                raise Problem(
                    504, f"no answer within {limits.timeout_s:g} s; send fewer samples or try again"
                ) from None
        _refuse_unreadable(predictions)
        metrics.samples.labels(name).inc(len(predictions))
        return JSONResponse({"model": {"name": name, "version": version}, "predictions": predictions})

    @app.get("/v1/models", responses={200: {"model": Models}, **_REFUSALS})
    async def models(request: Request) -> dict[str, Any]:
        identify(request)
        found = [await resolver.resolve(name) for name in resolver.names]
        return {"models": [{"name": name, "version": version} for name, version in found]}

    @app.get("/healthz", response_class=PlainTextResponse, responses=_REFUSALS)
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz", response_class=PlainTextResponse, responses=_REFUSALS)
    async def readyz() -> PlainTextResponse:
        admission.require_open()
        lines = ["ready"]
        for name in resolver.names:
            found, version = await resolver.resolve(name)
            await engine.ready(f"{found}:{version}")
            age_s = resolver.age_s(name)
            lines.append(f"{name}: the registry answered {age_s or 0:.0f} s ago")
        return PlainTextResponse("\n".join(lines))

    @app.get("/metrics", response_class=PlainTextResponse, responses=_REFUSALS)
    async def show_metrics(request: Request) -> Response:
        identify(request)
        for name in resolver.names:
            if (age_s := resolver.age_s(name)) is not None:
                metrics.alias_age.labels(name).set(age_s)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class Measured:
    """ASGI middleware: time and status of every answer to a request for predictions."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/predict"):
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.seconds.observe(time.perf_counter() - started)
                self.metrics.requests.labels(message["status"]).inc()
            await send(message)

        await self.app(scope, receive, noted)


async def while_connected(request: Request, answer: Awaitable[T]) -> T:
    """The answer, unless the client goes first: then it is given up, and nothing more is computed for it.

    Raises:
        Problem: 408, the client has gone; nobody reads it.
    """
    computing, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((computing, gone), return_when=asyncio.FIRST_COMPLETED)
        if computing.done():
            return computing.result()
        raise Problem(408, "the client has gone")
    finally:
        computing.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def check_reference(reference: str) -> str:
    """Raises Problem: 404, not the form of a name."""
    if _REFERENCE.fullmatch(reference) is None:
        raise Problem(404, "no such model; wanted NAME, NAME@alias or NAME:version")
    return reference


def _refuse_unreadable(predictions: list[dict[str, Any]]) -> None:
    for number, prediction in enumerate(predictions):
        if "problem" in prediction:
            raise Problem(422, f"samples.{number}: {prediction['problem']}")
