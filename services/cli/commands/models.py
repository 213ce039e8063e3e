"""`m2can models`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from services.cli.options import RUNS, AsJson, Storage, TrackingUri, show

app = typer.Typer(
    help="Look models up in the MLflow registry; bring published checkpoints in and out.", no_args_is_help=True
)

Version = Annotated[str, typer.Argument(help="NAME@alias or NAME:version.")]
AnyVersion = Annotated[str, typer.Argument(help="NAME, NAME@alias or NAME:version.")]


@app.command("list", epilog="Example:  m2can models list --json")
def list_(tracking_uri: TrackingUri = None, storage: Storage = RUNS, json_: AsJson = False) -> None:
    """All versions of all registered models, the newest of each first; other commands take the names in front."""
    from services.registry import search_models
    from trainers.tracking.registered_models import client_for

    found = search_models(client_for(tracking_uri, storage))
    _print_versions(sorted(found, key=lambda version: (version.name, -int(version.version))), json_)


@app.command(epilog="Example:  m2can models search --target mountain --min-accuracy 0.7")
def search(
    text: Annotated[str, typer.Argument(help="Part of a name or of a tag's value.")] = "",
    target: Annotated[str | None, typer.Option(help="Trained for this target.")] = None,
    source: Annotated[str | None, typer.Option(help="Trained on this source.")] = None,
    alias: Annotated[str | None, typer.Option(help="Has this alias.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Target accuracy, 0 to 1, if it was measured.")] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """All versions for which everything given holds, newest first."""
    from services.registry import search_models
    from trainers.tracking.registered_models import client_for

    client = client_for(tracking_uri, storage)
    found = search_models(client, text=text, target=target, source=source, alias=alias, min_accuracy=min_accuracy)
    _print_versions(found, json_)


@app.command("show", epilog="Example:  m2can models show m2can-mountain@candidate")
def show_(
    model: AnyVersion,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """One version with its tags, its recipe (as JSON) and its promotions."""
    from services.promotion import history
    from services.registry import recipe_of
    from trainers.tracking.registered_models import client_for, find_model

    client = client_for(tracking_uri, storage)
    version = find_model(client, model)
    promotions = history(client, version.name)
    rows = {"aliases": ", ".join(version.aliases), "run": version.run_id, "created": version.created, **version.tags}
    lines = [f"{version.name}:{version.version}", *(f"  {name:32} {value}" for name, value in rows.items())]
    for p in promotions:
        lines.append(f"  {p.time}  {p.action} @{p.alias}: {p.before or 'none'} → {p.after} by {p.by}")
    show(json_, vars(version) | {"recipe": recipe_of(client, version), "promotions": promotions}, *lines)


@app.command(
    epilog="Example:  m2can models promote m2can-mountain@candidate --if-better-than champion --on val/manifest.yaml"
)
def promote(
    model: Version,
    to: Annotated[str, typer.Option("--to", help="The alias that moves.")] = "champion",
    if_better_than: Annotated[
        str | None, typer.Option(help="Alias or version to beat on --on; without it nothing is checked.")
    ] = None,
    on: Annotated[Path | None, typer.Option(help="Manifest with labels.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    metric: Annotated[Literal["accuracy", "macro_f1"], typer.Option(help="What must be higher.")] = "accuracy",
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Point an alias at a version; services take it up without restart. Exit code 1 if it is not better."""
    from datasets_manifest.errors import InputError
    from services.promotion import Gate
    from services.promotion import promote as promote_version
    from trainers.tracking.registered_models import client_for

    if (if_better_than is None) != (on is None):
        raise InputError("go together", field="--if-better-than, --on", wanted="both or neither")
    gate = Gate(if_better_than, on, split, metric) if if_better_than and on else None
    _print_promotion(promote_version(client_for(tracking_uri, storage), model, to, gate), json_)


@app.command(epilog="Example:  m2can models rollback m2can-mountain")
def rollback(
    name: Annotated[str, typer.Argument(help="NAME of the model.")],
    alias: Annotated[str, typer.Option(help="The alias that goes back.")] = "champion",
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Give an alias back to the version that had it before."""
    from services.promotion import rollback as roll_back
    from trainers.tracking.registered_models import client_for

    _print_promotion(roll_back(client_for(tracking_uri, storage), name, alias), json_)


@app.command(epilog="Example:  m2can models fetch m2can-mountain@champion --to model")
def fetch(
    model: AnyVersion,
    to: Annotated[Path, typer.Option(help="New folder for the files.")],
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Bring a version's files here and verify their checksums."""
    from services.registry import fetch as fetch_model
    from trainers.tracking.registered_models import bundle_of, client_for

    version = fetch_model(client_for(tracking_uri, storage), model, to)
    content = {"name": version.name, "version": version.version, "folder": str(to), "verified": True}
    show(json_, content, f"{version.name}:{version.version} → {to}, checksums verified")
    if not json_:
        typer.echo(f"next: m2can predict {bundle_of(to)} --text …", err=True)


@app.command(
    epilog="Example:  m2can models compare m2can-mountain@candidate m2can-mountain@champion --on val/manifest.yaml"
)
def compare(
    first: Version,
    second: Version,
    on: Annotated[Path | None, typer.Option(help="Manifest with labels, to measure both.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """What differs between two versions."""
    from services.promotion import compare as compare_versions
    from trainers.tracking.registered_models import client_for

    result = compare_versions(client_for(tracking_uri, storage), first, second, on, split)
    rows = {"": result["versions"], **result["tags"], **result["recipe"]}
    if "metrics" in result:
        for key in ("accuracy", "macro_f1", "calibration_error", "records"):
            rows[key] = [f"{metrics[key]:.4g}" for metrics in result["metrics"]]
    show(json_, result, *(f"{key:40} {left or '–':>28} {right or '–':>28}" for key, (left, right) in rows.items()))


@app.command(epilog="Example:  m2can models delete m2can-mountain:3")
def delete(
    model: Annotated[str, typer.Argument(help="NAME:version.")],
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Remove a version that no alias points at."""
    from services.promotion import delete as delete_version
    from trainers.tracking.registered_models import client_for

    version = delete_version(client_for(tracking_uri, storage), model)
    content = {"name": version.name, "version": version.version, "deleted": True}
    show(json_, content, f"{version.name}:{version.version} deleted")


def _print_versions(found: list[Any], as_json: bool) -> None:
    lines = []
    for version in found:
        tag = {name: version.tags.get(f"m2can.{name}", "–") for name in ("sources", "target", "validator", "run_name")}
        accuracy = version.tags.get("m2can.target_accuracy_chosen", "–")
        if (expected := version.tags.get("m2can.target_accuracy_expected")) is not None:
            accuracy += f" (expected without labels: {expected})"
        how = f"target accuracy {accuracy} by {tag['validator']}  run {tag['run_name']}"
        if "m2can.adapted" in version.tags:
            how = f"adapted from {version.tags['m2can.started_from']} without the sources"
        lines.append(
            f"{version.name}:{version.version} {' '.join(f'@{alias}' for alias in version.aliases)}  "
            f"{tag['sources']} → {tag['target']}  {how}  {version.created}"
        )
    show(as_json, found, *(lines or ["no model fits"]))


def _print_promotion(record: Any, as_json: bool) -> None:
    lines = [f"  {name:12} {value}" for name, value in record.evidence.items()]
    show(as_json, record, f"@{record.alias}: {record.before or 'none'} → {record.after}", *lines)
