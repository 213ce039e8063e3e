"""`m2can models`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import print_json

app = typer.Typer(help="Look models up in the MLflow registry.", no_args_is_help=True)

TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI or --storage.")
]
Storage = Annotated[Path, typer.Option(help="Folder of runs with the local MLflow store.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command("list", epilog="Example:  m2can models list --json")
def list_(tracking_uri: TrackingUri = None, storage: Storage = Path("runs"), json_: AsJson = False) -> None:
    """All registered models, newest version of each."""
    from services.registry import client_for, list_models

    found = list_models(client_for(tracking_uri, storage))
    if json_:
        print_json([version.as_dict() for version in found])
        return
    if not found:
        typer.echo("no model is registered")
    for version in found:
        aliases = " ".join(f"@{alias}" for alias in version.aliases)
        accuracy = version.tags.get("m2can.target_accuracy_chosen", "–")
        typer.echo(f"{version.name}:{version.version} {aliases}  target accuracy {accuracy}  {version.created}")


@app.command(epilog="Example:  m2can models show m2can-mountain@candidate")
def show(
    model: Annotated[str, typer.Argument(help="NAME, NAME@alias or NAME:version.")],
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
    json_: AsJson = False,
) -> None:
    """One version with its tags."""
    from services.registry import client_for, find_model

    version = find_model(client_for(tracking_uri, storage), model)
    if json_:
        print_json(version.as_dict())
        return
    typer.echo(f"{version.name}:{version.version}")
    rows = {"aliases": ", ".join(version.aliases), "run": version.run_id, "created": version.created, **version.tags}
    for name, value in rows.items():
        typer.echo(f"  {name:32} {value}")
