"""`m2can runs`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import RUNS, AsJson, RunsStorage, TrackingUri, show
from services.cli.output import percent

if TYPE_CHECKING:
    from services.runs import RunInfo

app = typer.Typer(help="Look at runs, and remove them with all that belongs to them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the run, its folder, or its address (s3://…).")]


@app.command("list", epilog="Example:  m2can runs list --storage runs")
def list_(storage: RunsStorage = str(RUNS), json_: AsJson = False) -> None:
    """All runs of the storage folder, newest first."""
    from services.runs import list_runs, runs_at

    found = list_runs(runs_at(storage))
    width = max((len(run.name) for run in found), default=0)
    lines = []
    for run in found:
        done, asked = run.epochs
        lines.append(
            f"{run.name:{width}}  {run.started}  {run.state:10}  epoch {done}/{asked}  {' + '.join(run.sources)} → "
            f"{run.target}  target accuracy {percent(run.target_accuracy)}"
        )
    show(json_, found, *(lines or ["no run"]))


@app.command("show", epilog="Example:  m2can runs show mountain-20260101-120000-77")
def show_(
    name: Name, tracking_uri: TrackingUri = None, storage: RunsStorage = str(RUNS), json_: AsJson = False
) -> None:
    """One run with its folder's size, its MLflow run and its models."""
    from services.runs import runs_at, show_run

    run = show_run(name, runs_at(storage), tracking_uri)
    rows = {
        "state": f"{run.state}, {run.epochs[0]} of {run.epochs[1]} epochs",
        "started": run.started,
        "domains": f"{' + '.join(run.sources)} → {run.target}",
        "chosen epoch": "–" if run.chosen_epoch is None else run.chosen_epoch or "the floor",
        "target accuracy": percent(run.target_accuracy),
    }
    show(json_, run, run.name, *(f"  {key:16} {value}" for key, value in rows.items()), *_belongings(run))


@app.command(epilog="Example:  m2can runs delete mountain-20260101-120000-77 --yes")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    tracking_uri: TrackingUri = None,
    storage: RunsStorage = str(RUNS),
    json_: AsJson = False,
) -> None:
    """Remove a run: folder, MLflow run, model versions, artifacts. Lists all of it and asks first."""
    from datasets_manifest.errors import InputError
    from services.runs import delete_run, require_deletable, runs_at, show_run

    place = runs_at(storage)
    run = show_run(name, place, tracking_uri)
    require_deletable(run)
    for line in (f"{run.name}: this is removed", *_belongings(run)):
        typer.echo(line, err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nobody can be asked here", field="--yes", wanted="it: the run cannot be brought back")
        typer.confirm("Remove it all? It cannot be brought back.", abort=True, err=True)
    left = delete_run(run, place, tracking_uri)
    content = {"name": run.name, "deleted": True, "left": left}
    show(json_, content, f"{run.name} deleted", *left)


def _belongings(run: RunInfo) -> list[str]:
    """What a run consists of, a line each."""
    lines = [f"  folder           {run.stored or run.folder}  ({(run.bytes or 0) / 1e6:,.1f} MB)"]
    lines += [f"  MLflow run       {run_id}, with its artifacts" for run_id in run.run_ids]
    for version in run.models:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        lines.append(f"  model version    {version.name}:{version.version}{aliases}")
    return lines
