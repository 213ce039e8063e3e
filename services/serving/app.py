"""The HTTP side of online inference: an ASGI app around a backend that resolves names and predicts. Imports no Ray."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.serving.samples import Limits, Sample, read_samples
from services.web.auth import Tokens, require_scope
from services.web.body_limit import BodyLimit
from services.web.problems import Problem, install_problems

_REFERENCE = re.compile(r"[^@:/'\s]{1,200}(?:@[\w.-]{1,64}|:\d{1,9})?")


class Backend(Protocol):
    """Serves the models.

    resolve: `name`, `name@alias` or `name:version` → (name, version); raises Problem 404.
    predict: predictions of `name:version`, one mapping a sample as services.batch_prediction.predict_samples makes them;
        raises Problem 503.
    """

    names: list[str]

    async def resolve(self, reference: str) -> tuple[str, str]: ...

    async def predict(self, model_id: str, samples: list[Sample]) -> list[dict[str, Any]]: ...

    async def ready(self, model_id: str) -> None: ...


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("m2can_requests", "Answers by status", ["status"], registry=self.registry)
        self.samples = Counter("m2can_samples", "Samples predicted", ["model"], registry=self.registry)
        self.seconds = Histogram("m2can_request_seconds", "Time to answer", registry=self.registry)
        self.in_flight = Gauge("m2can_in_flight", "Predictions under way", registry=self.registry)


def make_app(backend: Backend, tokens: Tokens, limits: Limits | None = None) -> FastAPI:
    """The app. `/healthz` and `/readyz` need no token and say nothing but yes or no."""
    limits = limits or Limits()
    app = FastAPI(title="M2CAN inference", openapi_url=None)
    metrics = _Metrics()
    under_way = 0
    install_problems(app)

    @app.middleware("http")
    async def _measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        if request.url.path.endswith("/predict"):
            metrics.seconds.observe(time.perf_counter() - started)
            metrics.requests.labels(response.status_code).inc()
        return response

    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)

    @app.post("/v1/models/{reference}/predict")
    async def predict(reference: str, request: Request) -> JSONResponse:
        nonlocal under_way
        require_scope(tokens.identify(request.headers.get("authorization")), "predict")
        if under_way >= limits.in_flight:
            raise Problem(429, f"{limits.in_flight} predictions are under way; try again", {"Retry-After": "1"})
        under_way += 1
        metrics.in_flight.set(under_way)
        try:
            async with asyncio.timeout(limits.timeout_s):
                samples = await read_samples(request, limits)
                name, version = await backend.resolve(check_reference(reference))
                predictions = await backend.predict(f"{name}:{version}", samples)
        except TimeoutError:
            raise Problem(504, f"no answer within {limits.timeout_s:g} s; send fewer samples or try again") from None
        finally:
            under_way -= 1
            metrics.in_flight.set(under_way)
        _refuse_unreadable(predictions)
        metrics.samples.labels(name).inc(len(predictions))
        return JSONResponse({"model": {"name": name, "version": version}, "predictions": predictions})

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        require_scope(tokens.identify(request.headers.get("authorization")), "predict")
        found = [await backend.resolve(name) for name in backend.names]
        return {"models": [{"name": name, "version": version} for name, version in found]}

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        for name in backend.names:
            found, version = await backend.resolve(name)
            await backend.ready(f"{found}:{version}")
        return PlainTextResponse("ready")

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        require_scope(tokens.identify(request.headers.get("authorization")), "predict")
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def check_reference(reference: str) -> str:
    """Raises Problem: 404, not the form of a name."""
    if _REFERENCE.fullmatch(reference) is None:
        raise Problem(404, "no such model; wanted NAME, NAME@alias or NAME:version")
    return reference


def _refuse_unreadable(predictions: list[dict[str, Any]]) -> None:
    for number, prediction in enumerate(predictions):
        if "problem" in prediction:
            raise Problem(422, f"samples.{number}: {prediction['problem']}")
