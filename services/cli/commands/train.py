"""`m2can train`"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from datasets_manifest.errors import InputError, without_password
from services.cli.options import DataRoot, use_data_root
from services.cli.output import RunProgress, percent, print_json
from trainers.validators.checked import CheckedAccuracy
from trainers.validators.expected import ExpectedAccuracy

if TYPE_CHECKING:
    from trainers.cluster.dry_run import DryRun
    from trainers.journal.outcome import FloorResult
    from trainers.recipe import Recipe
    from trainers.run_result import Result


def train(
    recipe: Annotated[
        Path,
        typer.Argument(help="Recipe or published configuration (YAML), or AVA, PCCD, RPCD, TumEmo, Twitter, Yelp."),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe key; may be repeated.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="A finished run, to which epochs are added, or a checkpoint or registered model, whose weights are taken "
            "(train.start_from).",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray Train workers (cluster.workers).")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster (cluster.address); default: a local one.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Write every step's loss terms to this file (JSON lines).")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a profile of a few steps to the run's folder: trace and summary.")
    ] = False,
    candidate: Annotated[
        Literal["if-not-worse", "always"],
        typer.Option(help="Whether the alias `candidate` moves to the new version: if it is not worse, or always."),
    ] = "if-not-worse",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, run a few steps, print memory, time and disk; keep nothing."),
    ] = False,
    floor_only: Annotated[
        bool,
        typer.Option(
            "--floor-only", help="Train nothing: fit a linear classifier on the encoders as they are, register it."
        ),
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Train a recipe on a Ray cluster, register the model in MLflow."""
    from trainers.recipe import load_recipe
    from trainers.recipe.recipes import packaged_recipe

    use_data_root(data_root)
    overrides = list(set_ or [])
    if start_from is not None:
        overrides.append(f"train.start_from={json.dumps(start_from)}")
    if workers is not None:
        overrides.append(f"cluster.workers={workers}")
    if address is not None:
        overrides.append(f"cluster.address={address}")
    file = recipe if recipe.is_file() else packaged_recipe(str(recipe)) or recipe
    if floor_only and (dry_run or profile or trace is not None):
        raise InputError("goes without --dry-run, --profile and --trace", field="--floor-only")
    if dry_run:
        dry_run_recipe(load_recipe(file, overrides), as_json=json_)
        return
    loaded = load_recipe(file, overrides)
    result = run_recipe(loaded, as_json=json_, trace=trace, profile=profile, candidate=candidate, floor_only=floor_only)
    if json_:
        print_json(result.to_dict())
    else:
        print_result(result)


def dry_run_recipe(recipe: Recipe, *, as_json: bool) -> None:
    """What a run of the recipe would take, from a few of its steps."""
    from datasets_manifest.disk import megabytes
    from trainers.cluster.dry_run import dry_run
    from trainers.recipe.base import decided
    from trainers.tracking.address import tracking_uri
    from trainers.training_run import prepare_and_start_ray

    if recipe.tracking.enabled:
        tracking_uri(recipe)  # refuses an address that MLflow does not know
    prepared = prepare_and_start_ray(recipe)
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    found, epochs = dry_run(prepared), decided(prepared.recipe.train.epochs)
    if as_json:
        print_json({"event": "dry-run", **asdict(found), "pictures": prepared.pictures})
        return
    memory = ", ".join(f"{kind} {mib:,.0f} MiB" for kind, mib in found.memory_mib.items())
    hours, minutes = divmod(found.epoch_s * epochs / 60, 60)
    typer.echo(f"workers      {found.workers} on {found.device}, in {found.precision}; {found.steps} steps tried")
    typer.echo(f"pictures     {prepared.pictures}")
    typer.echo(f"peak memory  {memory} (the largest worker; its data is prepared in processes of their own)")
    typer.echo(f"an epoch     {found.epoch_s:,.1f} s: {found.steps_per_epoch} steps of {found.step_s:.3f} s, "
               f"{found.eval_batches} batches scored in {found.eval_batch_s:.3f} s each")  # fmt: skip
    typer.echo(f"the run      {int(hours)} h {minutes:.0f} min for {epochs} epochs, without start and report")
    frozen = f", frozen weights {megabytes(found.frozen_bytes)} once" if found.frozen_bytes else ""
    typer.echo(f"checkpoints  {megabytes(found.checkpoint_bytes)} each, at most {found.checkpoints} at a time{frozen}: "
               f"{megabytes(found.disk_bytes)} of {megabytes(found.free_bytes)} free")  # fmt: skip
    for line in batch_size_lines(found, prepared.recipe):
        typer.echo(line)


def batch_size_lines(found: DryRun, recipe: Recipe) -> list[str]:
    """What a dry run says of `train.batch_size`."""
    from trainers.worker.batch_sizes import rate_factor, to_take

    if found.batch_sizes is None:
        return ["batch size   not tried: only a GPU is asked for the one to take"]
    if not found.batch_sizes:
        return ["batch size   not tried: there are more workers than rows in a step"]
    speeds = ", ".join(f"{one.size}: {one.rows_per_s:,.0f}" for one in found.batch_sizes)
    largest = "" if found.largest_batch_size is None else f"; about {found.largest_batch_size} fit into memory"
    best, now = to_take(found.batch_sizes).size, recipe.train.batch_size
    factor = rate_factor(best, now, recipe.optimizer.type)
    rates = f" and every rate of optimizer.lr × {factor:.3g}" if best != now else ", as it is"
    return [f"batch size   rows/s at {speeds}{largest}", f"             take train.batch_size={best}{rates}"]


def run_recipe(
    recipe: Recipe,
    *,
    as_json: bool = False,
    trace: Path | None = None,
    profile: bool = False,
    candidate: str = "if-not-worse",
    floor_only: bool = False,
) -> Result:
    """Train as `m2can train` does: with progress on standard error. Signals stop it, with a checkpoint while it trains."""
    from services.cli.stopping import end_on_signals, stop_on_signals
    from trainers.training_run import run

    progress = RunProgress(as_json)

    def going_on() -> str:
        name = progress.run_name
        return f"run.name={name} goes on" if name else "nothing was begun: give the command again"

    stop = stop_on_signals(recipe.cluster.grace_s, going_on)
    with end_on_signals(going_on):
        return run(
            recipe,
            observer=progress,
            stop=stop,
            trace=trace,
            profile=profile,
            candidate=candidate,
            floor_only=floor_only,
        )


def mlflow_page(result: Result) -> tuple[str, str | None]:
    """The address of a run's page in MLflow, and the command that serves it first if no server does."""
    uri = str(result.tracking_uri)
    served = uri.startswith("http")
    address = uri.rstrip("/") if served else "http://127.0.0.1:5000"
    page = f"{without_password(address)}/#/experiments/{result.experiment_id}/runs/{result.run_id}"
    return page, None if served else f"mlflow server --backend-store-uri {without_password(uri)}"


def _print_choice(result: Result) -> None:
    """Where the target has no labels, or nothing was trained."""
    if not result.last_epoch and result.floor is not None:
        numbers = result.floor.numbers()
        accuracies = {"sources": numbers["source_accuracy"], result.target: numbers["target_accuracy"]}
        said = ", ".join(f"{name} {percent(x)}" for name, x in accuracies.items() if x is not None)
        typer.echo(f"floor       {said or 'no validation record has a label'}; nothing was trained")
        _print_zero_shot(result.floor)
        return
    sources = percent(result.chosen_metrics.get("source/val/accuracy"))
    by = f"(without target labels, by {result.validator})"
    where = f"{result.chosen} of {result.last_epoch}" if result.chosen_epoch else result.chosen
    typer.echo(f"chosen      {where} {by}, sources {sources}")
    if result.floor is not None and not result.floor.chosen:
        typer.echo(f"floor       sources {percent(result.floor.numbers()['source_accuracy'])}, without training")
        _print_zero_shot(result.floor)
    expected = ExpectedAccuracy.from_metrics(result.chosen_metrics)
    known = f"expected to be {expected}" if expected else "not known"
    if (checked := CheckedAccuracy.from_metrics(result.chosen_metrics)) is not None:
        typer.echo(f"            the accuracy on {result.target} is {checked}; without labels it is {known}")
        return
    suggested = f"m2can data suggest {result.folder}"
    typer.echo(
        f"            the accuracy on {result.target} is {known}, not measured: {suggested} names records to label"
    )


def _print_zero_shot(floor: FloorResult) -> None:
    by_names = floor.numbers()["zero_shot"]
    if by_names is not None and by_names["source_accuracy"] is not None:
        typer.echo(f"zero-shot   sources {percent(by_names['source_accuracy'])}, by class names, without training")


def print_result(result: Result) -> None:
    if result.oracle_epoch is not None:
        typer.echo("target accuracy")
        rows = {
            "chosen": (result.chosen_epoch, result.target_accuracy_chosen),
            "last": (result.last_epoch, result.target_accuracy_last),
            "oracle": (result.oracle_epoch, result.target_accuracy_oracle),
        }
        for which, (epoch, accuracy) in rows.items():
            how = f" (without target labels, by {result.validator})" if which == "chosen" else ""
            where = f"epoch {epoch:3}" if epoch else "the floor"
            typer.echo(f"  {which:6} {where}  {percent(accuracy):>7}{how}")
        if result.floor is not None:
            accuracy = result.floor.numbers()["target_accuracy"]
            typer.echo(f"  floor            {percent(accuracy):>7} (without training)")
            if (by_names := result.floor.numbers()["zero_shot"]) is not None:
                typer.echo(
                    f"  zero-shot        {percent(by_names['target_accuracy']):>7} (by class names, without training)"
                )
        typer.echo(f"  regret           {percent(result.regret):>7} (oracle less chosen)")
        if (expected := ExpectedAccuracy.from_metrics(result.chosen_metrics)) is not None:
            typer.echo(f"  expected of the chosen epoch without labels: {expected}")
        if (checked := CheckedAccuracy.from_metrics(result.chosen_metrics)) is not None:
            typer.echo(f"  measured: {checked}")
    else:
        _print_choice(result)
    if result.stopped_early is not None:
        typer.echo(f"stopped     {result.stopped_early}")
    if result.stored is not None:
        typer.echo(f"stored      {result.stored}; what follows lies in this machine's copy")
    typer.echo(f"checkpoint  {result.checkpoint}")
    if result.model_name:
        version = f"{result.model_name}:{result.model_version}"
        if result.not_candidate is None:
            typer.echo(f"model       models:/{result.model_name}@candidate (version {result.model_version})")
        else:
            typer.echo(f"model       {version}, not the candidate: {result.not_candidate}")
            typer.echo(f"            m2can models promote {version} --to candidate moves it (--candidate always)")
    if result.run_id:
        page, command = mlflow_page(result)
        typer.echo(f"MLflow run  {page}" + (f" after {command}" if command else ""))
    if result.last_epoch:
        typer.echo(f"pictures    {result.report}")
        typer.echo(f"report      {result.report_page}")
    for finding in result.findings:
        typer.echo(f"warning     {finding.what}\n            {finding.change}")
