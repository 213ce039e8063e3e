"""`m2can data`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.callback()
def _root() -> None: ...


@app.command(epilog="Example:  m2can data generate my-postcards")
def generate(
    out: Annotated[Path, typer.Argument(help="Folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other postcards.")] = 0,
    train: Annotated[int, typer.Option(help="Training records of each domain.", min=3)] = 600,
    val: Annotated[int, typer.Option(help="Validation records of each domain.", min=3)] = 200,
) -> None:
    """Write the generated data set: three domains of rendered postcards with captions."""
    from datasets_manifest.generated import write_postcards

    for path in write_postcards(out, seed=seed, train=train, val=val).values():
        typer.echo(str(path))
