"""`m2can demo`"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.output import percent

if TYPE_CHECKING:
    from trainers.run_result import Result

SOURCE_ONLY = ["uacr.enabled=false", *(f"objective.{term}=0" for term in ("cmcfa", "cdcfa", "cdafa", "mcc"))]


def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo works.")] = Path("demo"),
    workers: Annotated[
        int,
        typer.Option(help="Ray Train workers of the M2CAN run. So small a network gains nothing from a second one."),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
) -> None:
    """The whole way on the generated data set: train on sources alone, train M2CAN, look the model up, predict."""
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.postcards.generate import write_postcards
    from datasets_manifest.records.readers import read_split
    from services.cli.commands.train import run_recipe
    from services.cli.options import load_predictor
    from trainers.cluster.local_cluster import start_ray
    from trainers.recipe.demo import demo_recipe

    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_postcards, folder / "postcards", seed=seed)
        start_ray(None)
    manifests = writing.result()
    common = [f"run.storage={folder / 'runs'}", f"train.seed={seed}"]
    typer.echo("1. source-only training: the two labelled domains, nothing of the target")
    alone = run_recipe(demo_recipe(manifests, [*common, *SOURCE_ONLY, "tracking.register_as=m2can-demo-source-only"]))
    typer.echo("2. M2CAN: the same, and the target without its labels")
    adapted = run_recipe(demo_recipe(manifests, [*common, f"cluster.workers={workers}"]))
    _table(alone, adapted)
    typer.echo("\nThe model, from the registry, on a postcard of the target:")
    model = f"models:/{adapted.model_name}/{adapted.model_version}"
    predictor = load_predictor(model, adapted.tracking_uri, folder / "runs")
    card = read_split(load_manifest(list(manifests.values())[-1]), "val").table.slice(0, 1).to_pylist()[0]
    result = predictor.predict([card["texts"]], [card["images"]])
    typer.echo(f"  “{' '.join(card['texts'])}”  {card['images'][0]}")
    probs = ", ".join(f"{name} {percent(p)}" for name, p in zip(predictor.classes, result.probs[0], strict=True))
    typer.echo(f"  predicted {result.labels[0]} ({probs}); true {predictor.classes[card['label']]}")
    typer.echo(f"\nReport of the run: {adapted.report_page}")
    typer.echo(f"Pictures of the run: {adapted.report}")
    typer.echo(f"All runs and models: mlflow server --host 127.0.0.1 --backend-store-uri {adapted.tracking_uri}")
    typer.echo(f"Whole demo: {time.monotonic() - started:.0f} s")


def _table(alone: Result, adapted: Result) -> None:
    rows = [
        ("source-only, chosen without target labels", alone.target_accuracy_chosen),
        ("M2CAN, chosen without target labels", adapted.target_accuracy_chosen),
        ("M2CAN, last epoch", adapted.target_accuracy_last),
        ("M2CAN, best epoch by target labels (oracle)", adapted.target_accuracy_oracle),
    ]
    typer.echo("\ntarget accuracy")
    for name, value in rows:
        typer.echo(f"  {name:46} {percent(value):>7}")
