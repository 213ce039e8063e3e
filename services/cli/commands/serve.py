"""`m2can serve`"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from services.cli.options import RUNS, Host, Port, RayCluster, Storage, TokensFile, TrackingUri


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="NAME, NAME@alias or NAME:VERSION in the registry.")
    ],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    tokens: TokensFile = None,
    replicas: Annotated[int, typer.Option(help="Processes that predict; each takes a CPU, or a GPU.", min=1)] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.", min=0.1)] = 30.0,
    grace: Annotated[float, typer.Option(help="Seconds that requests have to end after SIGTERM.", min=0.0)] = 30.0,
    local: Annotated[bool, typer.Option("--local", help="In this one process, without Ray.")] = False,
    runtime: Annotated[
        Literal["torch", "onnx"],
        typer.Option(
            help="onnx: by onnxruntime on the CPU, as soon as a model has been exported; by torch until then."
        ),
    ] = "torch",
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet",
            help="Keep a sample of features and predictions, no record's content, for `m2can models drift`.",
        ),
    ] = None,
    sample_size: Annotated[int, typer.Option(help="Records of a version in the sample.", min=20)] = 1000,
    rate: Annotated[float, typer.Option(help="Requests a second that a token may send on average.", min=0.01)] = 200.0,
    address: RayCluster = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
) -> None:
    """Serve registered models over HTTP until interrupted; promotions take effect without restart."""
    from datasets_manifest.errors import InputError

    if local and (replicas != 1 or address is not None):
        field, value = ("--replicas", replicas) if replicas != 1 else ("--address", address)
        raise InputError("goes with Ray, not with --local", field=field, value=value, wanted="one of the two")
    if sample is not None:
        from services.drift.sample import require_sample

        if replicas != 1:
            raise InputError("goes with one replica", field="--sample", value=str(sample), wanted="--replicas 1")
        require_sample(sample)
    from services.serving.limits import Limits
    from services.serving.service import ServeConfig
    from services.web.auth import Tokens, check_host
    from trainers.tracking.address import resolve_tracking_uri

    known = Tokens.read(tokens)
    check_host(host, known)
    uri = resolve_tracking_uri(tracking_uri, storage.resolve())  # absolute: replicas have other working folders
    config = ServeConfig(
        models,
        uri,
        known,
        Limits(timeout_s=timeout, requests_per_s=rate),
        replicas,
        grace_s=grace,
        runtime=runtime,
        sample=None if sample is None else sample.absolute(),
        sample_size=sample_size,
    )

    def started() -> None:
        typer.echo(f"serving {', '.join(models)} at http://{host}:{port}/v1/models", err=True)

    if local:
        from services.serving.local import serve_here

        serve_here(config, host, port, started)
        return
    from services.serving.deployment import start, stop
    from services.serving.proxy import IMPORT_PATH, VARIABLE
    from trainers.cluster.local_cluster import start_ray

    os.environ.setdefault(VARIABLE, IMPORT_PATH)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    start(config, host, port, lambda: start_ray(address))
    started()
    done.wait()
    typer.echo("stopping: requests under way are answered, new ones are not let in", err=True)
    stop(config)
