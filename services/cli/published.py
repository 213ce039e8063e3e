"""`m2can models import|export`: checkpoints of the published implementation, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.models import app
from services.cli.options import RUNS, AsJson, ModelArgument, Storage, TrackingUri, load_predictor, show


@app.command("import", epilog="Example:  m2can models import checkpoints_AVA --recipe config_AVA.yaml --out models/ava")
def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR_OR_FILE", help="A published checkpoint.")],
    out: Annotated[Path | None, typer.Option(help="Model folder to make; default: models/<name>.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Its recipe or published configuration, if at hand.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names in order, with commas between.")] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Folder or hub name of its configuration and tokenizer (encoders.text.name).")
    ] = None,
    picture_encoder: Annotated[str | None, typer.Option(help="encoders.picture.name")] = None,
    register: Annotated[str | None, typer.Option(metavar="NAME", help="Register it in MLflow, too.")] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Make a model folder of a checkpoint that the published implementation wrote."""
    from datasets_manifest.errors import InputError
    from trainers.model.published_checkpoint import CLASSES, import_published, read_published, recipe_of
    from trainers.model.vocabulary import encoder_vocabulary
    from trainers.recipe import load_recipe, make_recipe

    found = read_published(checkpoint)
    names = [name.strip() for name in classes.split(",")] if classes else CLASSES.get(found.num_classes)
    if names is None:
        raise InputError("is missing", field="--classes", wanted=f"{found.num_classes} names")
    encoders = {"text": text_encoder, "picture": picture_encoder}
    if recipe is not None:
        stated = [f"encoders.{part}.name={name}" for part, name in encoders.items() if name is not None]
        settings = load_recipe(recipe, stated)
    else:
        named = {part: {"name": name} for part, name in encoders.items() if name is not None}
        settings = make_recipe(recipe_of(found) | {"encoders": named})
    if register is not None:
        from trainers.tracking.run_sender import register_import, require_registrable

        require_registrable(register, settings.tracking.experiment, tracking_uri, storage)
    folder = out or Path("models") / checkpoint.resolve().stem
    card = import_published(found, settings, encoder_vocabulary(settings), names, folder)
    result = {"model": str(folder), "classes": names, "epoch": found.epoch, "best_acc": found.best_acc}
    lines = [f"{folder}  ({', '.join(names)})"]
    if register is not None:
        tracked = register_import(folder, card, register, tracking_uri, storage)
        result |= {"model_name": tracked.model_name, "model_version": str(tracked.model_version)}
        lines.append(f"model  models:/{tracked.model_name}@candidate (version {tracked.model_version})")
    show(json_, result, *lines)


@app.command(epilog="Example:  m2can models export runs/my-run/checkpoint_9 best.pth --published")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    published: Annotated[bool, typer.Option("--published", help="In the published implementation's form.")] = False,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Write a model as one file that the published implementation reads."""
    from datasets_manifest.errors import InputError
    from trainers.model.published_checkpoint import export_published

    if not published:
        raise InputError("is missing", field="--published", wanted="it: there is no other form so far")
    predictor = load_predictor(model, tracking_uri, storage)
    export_published(predictor.network, predictor.card.recipe, out)
    show(json_, {"file": str(out)}, str(out))
