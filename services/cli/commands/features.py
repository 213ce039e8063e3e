"""`m2can features`"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from services.cli.options import AsJson, DataRoot, RayCluster, show, use_data_root


def features(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML) whose two encoders are frozen.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Folder for the features, or s3://…; a part of them that is there is gone on with."
        ),
    ],
    views: Annotated[int, typer.Option(help="Strong views of each record, beside the weak one.", min=1)] = 2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe key; may be repeated.")
    ] = None,
    address: RayCluster = None,
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Compute features of frozen encoders once; a recipe with `encoders.features: OUT` trains on them."""
    from rich.console import Console
    from rich.progress import Progress

    from datasets_manifest.disk import megabytes
    from datasets_manifest.features.feature_files import FEATURES
    from trainers.cluster.local_cluster import start_ray
    from trainers.features.compute import compute_features
    from trainers.recipe import load_recipe
    from trainers.store import is_store
    from trainers.store.run_store import written_to

    use_data_root(data_root)
    loaded = load_recipe(recipe, list(set_ or []))
    console = Console(stderr=True)
    progress = Progress(console=console, disable=not console.is_terminal)
    with written_to(out, FEATURES) as folder, progress:
        task = progress.add_task("records", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = compute_features(
            loaded,
            folder,
            strong=views,
            on_rows=update,
            start_ray=lambda: start_ray(address or loaded.cluster.address),
        )
    named = out if is_store(out) else str(Path(out).resolve())
    again = shlex.join(
        part for override in [*(set_ or []), f"encoders.features={named}"] for part in ("--set", override)
    )
    there = f", {summary.resumed:,} were there already" if summary.resumed else ""
    show(
        json_,
        replace(summary, out=out),
        *(f"note: {note}" for note in summary.notes),
        f"{summary.records:,} records{there}, {summary.with_bad_pictures:,} lack some pictures that cannot be read; the weak "
        f"and {summary.strong_views} strong views, {megabytes(summary.bytes)} → {out}",
        f"trains on them: m2can train {recipe} {again}",
    )
