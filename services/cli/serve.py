"""`m2can serve`, `m2can token`"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from services.cli.models import AsJson, Storage, TrackingUri
from services.cli.output import print_json

TokensFile = Annotated[
    Path | None, typer.Option("--tokens", help="Tokens file (mode 600); without it, loopback only and no token asked.")
]


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="NAME or NAME@alias in the registry.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8000,
    tokens: TokensFile = None,
    replicas: Annotated[int, typer.Option(help="Processes that predict; each takes a CPU, or a GPU.", min=1)] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up.", min=0.1)] = 30.0,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: a local one.")] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
) -> None:
    """Serve registered models over HTTP until interrupted; promotions take effect without restart."""
    from services.serving import deployment as serving
    from services.serving.samples import Limits
    from services.web.auth import Tokens, check_host
    from trainers.cluster.local_cluster import start_ray

    known = Tokens.read(tokens)
    check_host(host, known)
    uri = serving.store_uri(tracking_uri, storage)
    config = serving.ServeConfig(models, uri, known, Limits(timeout_s=timeout), replicas)
    start_ray(address)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    serving.start(config, host, port)
    typer.echo(f"serving {', '.join(models)} at http://{host}:{port}/v1/models", err=True)
    done.wait()
    typer.echo("stopping", err=True)
    serving.stop()


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    scope: Annotated[list[str], typer.Option(help="read, submit, admin or predict; may be repeated.")],
    json_: AsJson = False,
) -> None:
    """Make a token: it is shown once; the tokens file keeps its hash."""
    from services.web.auth import new_token

    secret, line = new_token(name, scope)
    if json_:
        print_json({"token": secret, "line": line})
        return
    typer.echo(f"token (give it to {name}, it is not kept): {secret}")
    typer.echo(f"line for the tokens file: {line}")
