"""`m2can models import|export`: checkpoints of the published implementation, in and out; models for other runtimes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from datasets_manifest.disk import megabytes
from services.cli.commands.models import app
from services.cli.options import RUNS, AsJson, ModelArgument, Storage, TrackingUri, show


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
    from trainers.compute.vocabulary import encoder_vocabulary
    from trainers.model.published_checkpoint import CLASSES, import_published, read_published, recipe_of
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


@app.command(
    epilog="Example:  m2can models export m2can-mountain@champion exported --onnx --data mountain/manifest.yaml"
)
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder to make, or with --published the file to write.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="For onnxruntime; needs pip install 'm2can[export]'.")] = False,
    torch_export: Annotated[bool, typer.Option("--torch-export", help="As torch.export writes it.")] = False,
    published: Annotated[bool, typer.Option("--published", help="In the published implementation's form.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="With --onnx: weights of matrix products in 8 bits.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Manifest whose records are compared; default: the model's target.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which of its records.")] = "val",
    records: Annotated[int, typer.Option(help="How many of them at most.", min=2)] = 100,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
) -> None:
    """Write a model for onnxruntime, for torch.export or for the published implementation.

    The first two are written only if they predict real records as the model does.
    """
    from datasets_manifest.errors import InputError
    from services.model_files import model_files
    from trainers.exported.predictor import is_exported
    from trainers.model.predictor import Predictor

    chosen = {"--onnx": onnx, "--torch-export": torch_export, "--published": published}
    given = [name for name, is_given in chosen.items() if is_given]
    if len(given) != 1:
        raise InputError("names one form", field=", ".join(chosen), value=given or None, wanted="one of them")
    folder = model_files(model, tracking_uri, storage)
    if is_exported(folder):
        raise InputError("was exported already", field="MODEL", value=model, wanted="the model that it was made of")
    predictor = Predictor.load(folder, "cpu")
    if published:
        from trainers.model.published_checkpoint import export_published

        export_published(predictor.network, predictor.card.recipe, out)
        show(json_, {"file": str(out)}, str(out))
        return
    from datasets_manifest.manifest.loading import load_manifest
    from datasets_manifest.records.readers import read_split
    from trainers.exported.export import export_model
    from trainers.exported.graph import Form

    manifest = load_manifest(data or Path(predictor.card.recipe.data.target))
    table = read_split(manifest, split).table.slice(0, records)
    texts, images = (table[name].to_pylist() for name in ("texts", "images"))
    form: Form = "onnx" if onnx else "torch"
    found = export_model(predictor, out, form, texts, images, int8=int8, made_of=folder)
    show(
        json_,
        asdict(found),
        str(out),
        f"{found.records} records  probabilities within {found.most_off:.1g}, {found.equal_labels:.1%} of the labels equal",
        f"weights  {megabytes(found.bytes_before)} → {megabytes(found.bytes_after)}",
        f"one record  {found.ms_before:.1f} ms → {found.ms_after:.1f} ms",
    )
