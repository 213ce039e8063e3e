"""`m2can doctor`"""

from __future__ import annotations

from pathlib import Path

import typer

from services.cli.data import DataRoot
from services.cli.models import AsJson, Storage, TrackingUri
from services.cli.output import print_json


def doctor(
    data_root: DataRoot = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
    json_: AsJson = False,
) -> None:
    """Look at what a run needs on this machine. Exit code 1 if something would stop one."""
    from services.doctor import examine, is_fit, report

    findings = examine(storage, data_root, tracking_uri)
    if json_:
        print_json(report(findings))
    else:
        for name, number in report(findings)["versions"].items():
            typer.echo(f"  {name:24} {number}")
        for finding in findings:
            advice = f"  → {finding.advice}" if finding.advice else ""
            typer.echo(f"{finding.level:8}{finding.name}: {finding.found}{advice}")
    if not is_fit(findings):
        raise typer.Exit(1)
