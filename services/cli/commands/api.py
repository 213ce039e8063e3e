"""`m2can api`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import RUNS, Dashboard, Host, Port, Storage, TokensFile, TrackingUri


def api(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    tokens: TokensFile = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder that submitted recipes may use; may be repeated. Default: here.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second that a caller may send on average.", min=0.01)] = 5.0,
    jobs: Annotated[int, typer.Option(help="Jobs of one caller that may wait or run at a time.", min=1)] = 8,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name beside the loopback's that clients may use without tokens; may be repeated."),
    ] = None,
    audit: Annotated[Path | None, typer.Option(help="File for the audit log; default: STORAGE/audit.jsonl.")] = None,
    address: Dashboard = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
) -> None:
    """Run the control plane: jobs, sweeps, models and data checks over HTTP; its document is at /docs."""
    import uvicorn

    from services.api.app import make_api
    from services.api.audit import AuditLog
    from services.api.requests import ApiConfig
    from services.jobs.job_request import refuse_passwords
    from services.jobs.jobs import JobServer
    from services.web.auth import Tokens, check_host
    from services.web.rate_limit import RateLimit
    from trainers.tracking.address import resolve_tracking_uri
    from trainers.tracking.registered_models import client_for

    known = Tokens.read(tokens)
    check_host(host, known)
    uri = resolve_tracking_uri(tracking_uri, storage.resolve())
    refuse_passwords({"--tracking-uri": uri})
    config = ApiConfig(
        jobs=JobServer(address),
        registry=lambda: client_for(uri),
        tracking_uri=uri,
        tokens=known,
        roots=[path.resolve() for path in root or [Path()]],
        storage=storage.resolve(),
        audit=AuditLog(audit or storage / "audit.jsonl"),
        rate=RateLimit(rate, max(1, round(rate * 10))),
        most_jobs=jobs,
        allowed_hosts=tuple(allow_host or ()),
    )
    typer.echo(f"control plane at http://{host}:{port}/docs", err=True)
    uvicorn.run(make_api(config), host=host, port=port, log_level="warning", server_header=False)
