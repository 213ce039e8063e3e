"""`m2can api`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.jobs import Address
from services.cli.models import Storage, TrackingUri
from services.cli.serve import TokensFile


def api(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8080,
    tokens: TokensFile = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder that submitted recipes may use; may be repeated. Default: here.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second that a caller may send on average.", min=0.01)] = 5.0,
    audit: Annotated[Path | None, typer.Option(help="File for the audit log; default: STORAGE/audit.jsonl.")] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
) -> None:
    """Run the control plane: jobs, sweeps, models and data checks over HTTP; its document is at /docs."""
    import uvicorn

    from services.api.app import make_api
    from services.api.audit import AuditLog
    from services.api.rate_limit import RateLimit
    from services.api.requests import ApiConfig, RayJobs
    from services.jobs.job_request import refuse_passwords
    from services.registry import client_for
    from services.web.auth import Tokens, check_host
    from trainers.tracking.address import resolve_tracking_uri

    known = Tokens.read(tokens)
    check_host(host, known)
    uri = resolve_tracking_uri(tracking_uri, storage.resolve())
    refuse_passwords({"--tracking-uri": uri})
    config = ApiConfig(
        jobs=RayJobs(address),
        registry=lambda: client_for(uri),
        tracking_uri=uri,
        tokens=known,
        roots=[path.resolve() for path in root or [Path()]],
        storage=storage.resolve(),
        audit=AuditLog(audit or storage / "audit.jsonl"),
        rate=RateLimit(rate, max(1, round(rate * 10))),
    )
    typer.echo(f"control plane at http://{host}:{port}/docs", err=True)
    uvicorn.run(make_api(config), host=host, port=port, log_level="warning", server_header=False)
