"""`m2can data`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import print_json

DataRoot = Annotated[
    str | None, typer.Option("--data-root", help="Folder or URI of the catalog's data sets; default: M2CAN_DATA_ROOT.")
]

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


def use_data_root(root: str | None) -> None:
    """Let the catalog look below `root` in this process and those it starts."""
    from datasets_manifest.catalog import DATA_ROOT
    from datasets_manifest.storage import is_uri

    if root is not None:
        os.environ[DATA_ROOT] = root if is_uri(root) else os.path.abspath(os.path.expanduser(root))


@app.command("list", epilog="Example:  m2can data list --json")
def list_(json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False) -> None:
    """The data sets known by name."""
    from datasets_manifest.catalog import entries

    if json_:
        print_json([entry.model_dump() for entry in entries().values()])
        return
    for entry in entries().values():
        counts = " / ".join(f"{count:,}" for count in entry.counts.values())
        typer.echo(f"{entry.name:10} {counts:>15}  {', '.join(entry.classes):28} {entry.about}")


@app.command(epilog="Example:  m2can data show Yelp --data-root /data")
def show(
    name: Annotated[str, typer.Argument(help="A data set of `m2can data list`.")],
    data_root: DataRoot = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """What is known of a data set, and where its files belong."""
    from datasets_manifest import catalog
    from datasets_manifest.errors import InputError

    use_data_root(data_root)
    entry = catalog.find(name)
    try:
        root = f"{str(catalog.data_root()).rstrip('/')}/{entry.name}"
    except InputError:
        root = f"<data root>/{entry.name}"
    places = [f"{root}/{domain}/manifest.yaml" for domain in entry.domains] or [
        *(f"{root}/{split}.json" for split in entry.counts),
        f"{root}/{entry.layout}",
    ]
    if json_:
        print_json(entry.model_dump() | {"files": places})
        return
    rows = {
        "about": entry.about,
        "classes": ", ".join(entry.classes),
        "records": ", ".join(f"{count:,} {split}" for split, count in entry.counts.items()),
        "label rule": entry.label_rule,
        "source": entry.source,
        "terms": entry.terms,
        "files": ("\n" + " " * 14).join(places),
        "in a recipe": ", ".join(f"catalog:{entry.name}/{d}" for d in entry.domains) or f"catalog:{entry.name}",
    }
    for key, value in rows.items():
        typer.echo(f"  {key:12}{value}")
