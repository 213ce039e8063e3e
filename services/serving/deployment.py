"""Online inference with Ray Serve: one deployment that holds the application, the resolver and the models.

    POST /v1/models/NAME/predict ─▶ Inference: token, limits, alias → version, queue, batches ─▶ Predictor

The alias is resolved before the request is queued, so a promotion takes effect within a second, and each request is
answered by one version, which the response names.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from datasets_manifest.errors import InputError
from services.serving.limits import Limits
from services.serving.service import Runtime, ServeConfig, Service, require_models
from services.web.auth import Tokens

APP = "m2can"
_ASKED_TO_DRAIN_S = 0.2  # between two questions whether a replica still has requests


@serve.ingress()
class Inference:
    """A replica."""

    def __init__(self, config: ServeConfig) -> None:
        self._service = Service(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._service.app

    def reconfigure(self, settings: dict[str, bool]) -> None:
        """Called by Ray Serve with the deployment's `user_config`; `draining` lets nothing new in."""
        self._service.admission.draining = settings["draining"]

    def under_way(self) -> int:
        """Requests that are not answered yet."""
        return self._service.admission.under_way

    def __del__(self) -> None:
        """Called by Ray Serve when it ends the replica."""
        if hasattr(self, "_service"):  # not if the replica could not be made
            self._service.close()


def application(config: ServeConfig, *, draining: bool = False) -> Any:
    """The Serve application: replicas, each with the whole service."""
    one = int(torch.cuda.is_available() and config.runtime == "torch")
    gpus = config.gpus_per_replica if config.gpus_per_replica is not None else one
    deployment = serve.deployment(
        Inference,
        name="Inference",
        num_replicas=config.replicas,
        user_config={"draining": draining},
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        # More than the app itself accepts: it answers 429 with advice, and health checks come on top.
        max_ongoing_requests=2 * config.limits.in_flight_of_all,
        graceful_shutdown_wait_loop_s=_ASKED_TO_DRAIN_S,
        graceful_shutdown_timeout_s=config.grace_s,
    )
    return deployment.bind(config)


class BuildArguments(BaseModel):
    """`args` of a Serve configuration file; `m2can serve` has the same as options."""

    model_config = ConfigDict(extra="forbid")

    models: Annotated[list[str], Field(min_length=1)]
    tracking_uri: str
    tokens: Path
    replicas: Annotated[int, Field(ge=1)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    runtime: Runtime = "torch"


def build(arguments: BuildArguments) -> Any:
    """The application for `serve deploy` and KubeRay's RayService: `import_path: services.serving.deployment:build`.

    Others can reach its port, so a tokens file is required.

    Raises:
        InputError: the tokens file is missing, readable by others or malformed.
    """
    options = arguments.model_dump(include={"models", "tracking_uri", "replicas", "gpus_per_replica", "runtime"})
    limits = Limits(timeout_s=arguments.timeout_s)
    return application(ServeConfig(tokens=Tokens.read(arguments.tokens), limits=limits, **options))


def start(config: ServeConfig, host: str, port: int, start_ray: Callable[[], object] = lambda: None) -> None:
    """Serve at host:port, until `stop`.

    Args:
        start_ray: called once the models and the port were found good; afterwards Ray must be running.

    Raises:
        InputError: a model that is not in the registry, the port is taken, or the cluster serves something already:
            Ray Serve has one port a cluster, and shutting it down ends all applications.
    """
    require_models(config)
    _port_is_free(host, port)
    start_ray()
    running = serve.status().applications
    if running:
        wanted = "a cluster that serves nothing; end what is served there first"
        raise InputError("serves already", field="--address", value=", ".join(running), wanted=wanted)
    http = {"host": host, "port": port, "request_timeout_s": config.limits.timeout_s + 5}
    serve.start(http_options=http)
    serve.run(application(config), name=APP, route_prefix="/")


def stop(config: ServeConfig) -> None:
    """Let nothing new in, wait for the requests under way, at most `grace_s`, and shut Ray Serve down."""
    ends = time.monotonic() + config.grace_s
    replicas = serve.run(application(config, draining=True), name=APP, route_prefix="/")
    # A call goes to one of the replicas; twice as many calls as replicas reach nearly always all of them.
    while time.monotonic() < ends and any(replicas.under_way.remote().result() for _ in range(2 * config.replicas)):
        time.sleep(_ASKED_TO_DRAIN_S)
    serve.delete(APP)  # waits for what is left on each replica
    serve.shutdown()


def _port_is_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"cannot be used ({error.strerror})", field="--port", value=port) from None
