"""`m2can doctor`"""

from __future__ import annotations

import typer

from services.cli.options import RUNS, AsJson, DataRoot, Storage, TrackingUri, show


def doctor(
    data_root: DataRoot = None, tracking_uri: TrackingUri = None, storage: Storage = RUNS, json_: AsJson = False
) -> None:
    """Check what a run needs on this machine. Exit code 1 if something would stop one."""
    from services.doctor import examine, is_fit, report

    findings = examine(storage, data_root, tracking_uri)
    content = report(findings)
    lines = [f"  {name:24} {number}" for name, number in content["versions"].items()]
    for finding in findings:
        advice = f"  → {finding.advice}" if finding.advice else ""
        lines.append(f"{finding.level:8}{finding.name}: {finding.found}{advice}")
    show(json_, content, *lines)
    if not is_fit(findings):
        raise typer.Exit(1)
