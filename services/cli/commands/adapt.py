"""`m2can adapt`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import RUNS, AsJson, DataRoot, ModelArgument, Storage, TrackingUri, show, use_data_root
from services.cli.output import percent


def adapt(
    model: ModelArgument,
    target: Annotated[str, typer.Option(help="Manifest of the new target; its labels are not used.")],
    split: Annotated[str, typer.Option(help="Its split that is adapted to.")] = "train",
    out: Annotated[Path | None, typer.Option(help="New folder for the model; default: adapted/<target>.")] = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Register it in MLflow; default: m2can-<target>, if MODEL is registered."),
    ] = None,
    data_root: DataRoot = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Adapt a trained model to another target by that target's records alone, without the sources.

    Nothing is written where something speaks against the adapted model: the command says so, and the model stays. Exit code 0.
    """
    from datasets_manifest.errors import InputError
    from datasets_manifest.manifest.loading import load_manifest
    from services.adaptation import adapt as adapted_to
    from services.adaptation import write_adapted
    from services.model_files import model_files
    from trainers.model.card import load_card
    from trainers.tracking.run_sender import register_import, require_registrable

    use_data_root(data_root)
    named = _registered(model, tracking_uri, storage)
    domain = load_manifest(target).name
    name = register or (f"m2can-{domain}" if named else None)
    folder = out or Path("adapted") / domain
    if folder.exists():
        raise InputError("is there already", field="--out", value=str(folder), wanted="a new folder")
    source = f"{named.name}:{named.version}" if named else model
    files = model_files(source, tracking_uri, storage)
    if name is not None:
        require_registrable(name, load_card(files).recipe.tracking.experiment, tracking_uri, storage)
    found = adapted_to(files, target, split, name=source)
    content: dict[str, Any] = {
        "event": "end",
        "kept": found.harm is not None,
        "harm": found.harm,
        "records": found.records,
        "changed": found.changed,
        "consistency_before": found.before,
        "consistency_after": found.after,
        "expected_before": None if found.expected is None else vars(found.expected),
        "accuracy_before": found.accuracy_before,
        "accuracy_after": found.accuracy_after,
        "model": None,
        "model_name": None,
        "model_version": None,
    }
    lines = [f"{found.records:,} records of {found.card.target}, {percent(found.changed)} get another label"]
    lines.append(
        f"neighbours of one label, beyond chance: {found.before:.3f} as the model is, {found.after:.3f} adapted"
    )
    if found.expected is not None:
        lines.append(f"expected accuracy of the model as it is: {found.expected}, without labels")
    if found.accuracy_before is not None:
        before, after = percent(found.accuracy_before), percent(found.accuracy_after)
        lines.append(f"accuracy: {before} as the model is, {after} adapted (its labels are not used)")
    if found.harm is not None:
        show(json_, content, *lines, f"not adapted: {found.harm}; the model stays as it is, nothing was written")
        return
    write_adapted(folder, found)
    content["model"] = str(folder)
    lines.append(f"model  {folder}")
    if name is not None:
        tags = {"m2can.adapted": "true", "m2can.started_from": source}
        tracked = register_import(folder, found.card, name, tracking_uri, storage, tags)
        content |= {"model_name": tracked.model_name, "model_version": str(tracked.model_version)}
        lines.append(f"model  models:/{tracked.model_name}@candidate (version {tracked.model_version})")
    lines.append(
        "whether it got better is not known without labels: m2can data suggest, or m2can evaluate where there are some"
    )
    show(json_, content, *lines)


def _registered(model: str, tracking_uri: str | None, storage: Path) -> Any:
    """The version that a registered model's name means; None for a folder."""
    from services.model_files import is_folder

    if is_folder(model):
        return None
    from trainers.tracking.registered_models import client_for, find_model

    return find_model(client_for(tracking_uri, storage), model)
