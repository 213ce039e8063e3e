"""Options shared by several commands, and how they are resolved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.output import print_json


def folder_of_runs(written: str | Path) -> Path:
    """Refuse an address where a command reads and writes a folder."""
    if "://" in str(written):
        raise typer.BadParameter(f"{written} is an address; this command takes a folder of runs, or --tracking-uri.")
    return Path(written)


AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", help="Folder or URI of the catalog's data sets; default: M2CAN_DATA_ROOT.")
]
TrackingUri = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI or --storage.")
]
Storage = Annotated[Path, typer.Option(help="Folder of runs with the local MLflow store.", parser=folder_of_runs)]
RunsStorage = Annotated[str, typer.Option("--storage", help="Folder of runs, or its address in an object store.")]
RUNS = Path("runs")
RayCluster = Annotated[str | None, typer.Option(help="Ray cluster; default: a local one.")]
Dashboard = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard, http://HOST:8265; default: RAY_API_SERVER_ADDRESS."),
]
Host = Annotated[str, typer.Option(help="Address to listen at.")]
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="The folder of a run or a checkpoint, or NAME, NAME:VERSION, NAME@alias."),
]
Port = Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)]
TokensFile = Annotated[
    Path | None, typer.Option("--tokens", help="Tokens file (mode 600); without it, loopback only and no token asked.")
]


def use_data_root(root: str | None) -> None:
    """Let the catalog look below `root` in this process and those it starts."""
    from datasets_manifest.manifest.catalog import DATA_ROOT
    from datasets_manifest.manifest.storage import is_uri

    if root is not None:
        os.environ[DATA_ROOT] = root if is_uri(root) else os.path.abspath(os.path.expanduser(root))


def load_predictor(model: str, tracking_uri: str | None, storage: Path) -> Any:
    """The predictor of whatever `services.model_files` finds."""
    from services.model_files import model_files
    from trainers.exported.predictor import load_predictor as load

    return load(model_files(model, tracking_uri, storage))


def show(as_json: bool, content: Any, *lines: str) -> None:
    """Print `content` as JSON, or `lines` as text."""
    if as_json:
        print_json(content)
        return
    for line in lines:
        typer.echo(line)
