"""Online inference with Ray Serve.

    POST /v1/models/NAME/predict ─▶ Ingress: limits, token, alias → version ─▶ Models: name:version, batches ─▶ Predictor

The alias is resolved before the request is routed, so a promotion takes effect within a second, and each request is
answered by one version, which the response names.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError

from datasets_manifest.errors import InputError
from services.batch_prediction import predict_samples
from services.registry import client_for, fetch_bundle, find_model
from services.serving.app import make_app
from services.serving.samples import Limits, Sample
from services.web.auth import Tokens
from services.web.problems import Problem
from trainers.model.predictor import Predictor

APP = "m2can"
_ALIASES = ("champion", "candidate")
_MODELS_IN_MEMORY = 3  # of one replica; during a promotion at least two
_MAX_BATCH = 16  # requests
_BATCH_WAIT_S = 0.005


@dataclass(frozen=True)
class ServeConfig:
    """models: names in the registry, with or without `@alias`; without, the champion is served, else the candidate."""

    models: list[str]
    tracking_uri: str
    tokens: Tokens
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1
    gpus_per_replica: float | None = None  # None: one where this node has one
    alias_ttl_s: float = 1.0


class Resolver:
    """Aliases → versions, looked up at most once in `ttl_s` seconds. While MLflow is down the last answer is used."""

    def __init__(self, models: list[str], tracking_uri: str, ttl_s: float) -> None:
        self._defaults = {model.partition("@")[0]: model for model in models}
        self._uri, self._ttl_s = tracking_uri, ttl_s
        self._known: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._client: Any = None

    @property
    def names(self) -> list[str]:
        return list(self._defaults)

    def resolve(self, reference: str) -> tuple[str, str]:
        """(name, version).

        Raises:
            Problem: 404 not served or no such version, 503 MLflow is down and the alias was never looked up.
        """
        name, numbered = re.split("[@:]", reference)[0], ":" in reference
        if name not in self._defaults:
            raise Problem(404, f"{name} is not served here; served are {', '.join(self._defaults)}")
        if reference == name:
            reference = self._defaults[name]
        with self._lock:
            known = self._known.get(reference)
            # A version's number never changes its meaning; an alias may have been moved.
            if known is not None and (numbered or time.monotonic() - known[0] < self._ttl_s):
                return name, known[1]
            try:
                version = self._look_up(reference)
            except InputError as error:
                raise Problem(404, str(error)) from None
            except (MlflowException, OSError) as error:
                if known is None:
                    raise Problem(503, "the registry does not answer", {"Retry-After": "5"}) from error
                version = known[1]
            self._known[reference] = (time.monotonic(), version)
            return name, version

    def _look_up(self, reference: str) -> str:
        if self._client is None:
            self._client = client_for(self._uri)
        if "@" in reference or ":" in reference:
            return find_model(self._client, reference).version
        aliases = self._client.get_registered_model(reference).aliases
        for alias in _ALIASES:
            if alias in aliases:
                return str(aliases[alias])
        return find_model(self._client, reference).version


class Models:
    """A replica: keeps the most recently requested versions in memory and answers requests for one version in batches."""

    def __init__(self, config: ServeConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        self._loads: dict[str, asyncio.Task[Predictor]] = {}

    @serve.multiplexed(max_num_models_per_replica=_MODELS_IN_MEMORY)
    async def load(self, model_id: str) -> Predictor:
        """Loading goes on when the request that began it times out: later requests use the result."""
        if model_id not in self._loads:
            self._loads[model_id] = asyncio.create_task(asyncio.to_thread(self._load, model_id))
        load = self._loads[model_id]
        try:
            return await asyncio.shield(load)
        finally:
            if load.done():  # otherwise only this request was cancelled
                self._loads.pop(model_id, None)

    def _load(self, model_id: str) -> Predictor:
        return Predictor.load(fetch_bundle(client_for(self._config.tracking_uri), model_id))

    @serve.batch(max_batch_size=_MAX_BATCH, batch_wait_timeout_s=_BATCH_WAIT_S)
    async def predict(self, requests: list[list[Sample]]) -> list[list[dict[str, Any]]]:
        """Called with one request's samples at a time: Ray Serve makes batches of the requests for one version."""
        predictor = await self.load(serve.get_multiplexed_model_id())
        samples = [sample for request in requests for sample in request]
        texts, images = [sample.texts for sample in samples], [sample.images for sample in samples]
        rows = iter(await asyncio.to_thread(predict_samples, predictor, texts, images))
        return [[next(rows) for _ in request] for request in requests]

    async def ready(self) -> None:
        await self.load(serve.get_multiplexed_model_id())


class ServeBackend:
    """Calls the replicas for the app."""

    def __init__(self, config: ServeConfig) -> None:
        self._resolver = Resolver(config.models, config.tracking_uri, config.alias_ttl_s)
        self.names = self._resolver.names
        self._handle: Any = None

    async def resolve(self, reference: str) -> tuple[str, str]:
        return await asyncio.to_thread(self._resolver.resolve, reference)

    async def predict(self, model_id: str, samples: list[Sample]) -> list[dict[str, Any]]:
        return await self._ask(model_id, "predict", samples)

    async def ready(self, model_id: str) -> None:
        await self._ask(model_id, "ready")

    async def _ask(self, model_id: str, method: str, *arguments: Any) -> Any:
        if self._handle is None:
            self._handle = serve.get_deployment_handle("Models", APP)
        handle = self._handle.options(multiplexed_model_id=model_id, method_name=method)
        try:
            return await handle.remote(*arguments)
        except BackPressureError:
            raise Problem(503, "all replicas are busy; try again", {"Retry-After": "1"}) from None
        except InputError as error:  # raised in the replica: the version's files
            raise Problem(503, f"{model_id} cannot be loaded: {error}") from None
        except RayError as error:
            raise Problem(503, "a replica was lost; try again", {"Retry-After": "1"}) from error


def application(config: ServeConfig) -> Any:
    """The Serve application: an ingress that reserves no CPU, and the replicas."""

    def build() -> FastAPI:
        return make_app(ServeBackend(config), config.tokens, config.limits)

    in_flight = config.limits.in_flight

    @serve.deployment(
        name="Ingress",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        # More than the app itself accepts: it answers 429 with advice, and health checks come on top.
        max_ongoing_requests=2 * in_flight + 16,
    )
    @serve.ingress(build)
    class Ingress:
        def __init__(self, models: Any) -> None:
            self.models = models

    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else int(torch.cuda.is_available())
    models = serve.deployment(
        Models,
        name="Models",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        # All that the ingress accepts: a request that a full replica rejects waits for the router's next try.
        max_ongoing_requests=max(in_flight, 2 * _MAX_BATCH),
        max_queued_requests=in_flight,
    )
    return Ingress.bind(models.bind(config))  # type: ignore[attr-defined]  # Ray's decorators are untyped


class BuildArguments(BaseModel):
    """`args` of a Serve configuration file; `m2can serve` has the same as options."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[str], Field(min_length=1)]
    tracking_uri: str
    tokens: Path
    replicas: Annotated[int, Field(ge=1)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 30.0


def build(arguments: BuildArguments) -> Any:
    """The application for `serve deploy` and KubeRay's RayService: `import_path: services.serving.deployment:build`.

    Others can reach its port, so a tokens file is required.

    Raises:
        InputError: the tokens file is missing, readable by others or malformed.
    """
    options = arguments.model_dump(include={"models", "tracking_uri", "replicas", "gpus_per_replica"})
    limits = Limits(timeout_s=arguments.timeout_s)
    return application(ServeConfig(tokens=Tokens.read(arguments.tokens), limits=limits, **options))


def start(config: ServeConfig, host: str, port: int) -> None:
    """Serve at host:port, until `stop`. Ray must be running.

    Raises:
        InputError: a model that is not in the registry, the port is taken, or the cluster serves something already:
            Ray Serve has one port a cluster, and shutting it down ends all applications.
    """
    for model in config.models:
        find_model(client_for(config.tracking_uri), model)
    running = serve.status().applications
    if running:
        wanted = "a cluster that serves nothing; end what is served there first"
        raise InputError("serves already", field="--address", value=", ".join(running), wanted=wanted)
    _port_is_free(host, port)
    http = {"host": host, "port": port, "request_timeout_s": config.limits.timeout_s + 5}
    serve.start(http_options=http)
    serve.run(application(config), name=APP, route_prefix="/")


def stop() -> None:
    """Shut Ray Serve down."""
    serve.shutdown()


def _port_is_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"cannot be used ({error.strerror})", field="--port", value=port) from None
