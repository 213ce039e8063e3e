"""`m2can predict` and `m2can evaluate`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.data import DataRoot, use_data_root
from services.cli.models import AsJson, Storage, TrackingUri
from services.cli.output import percent, print_json

Model = Annotated[str, typer.Argument(help="A checkpoint folder, or models:/NAME@alias, models:/NAME/VERSION.")]


def load_predictor(model: str, tracking_uri: str | None, storage: Path) -> Any:
    """The predictor of a checkpoint folder or of a registered model."""
    from trainers.model.predictor import Predictor

    return Predictor.load(find_bundle(model, tracking_uri, storage))


def find_bundle(model: str, tracking_uri: str | None, storage: Path) -> Path:
    """The folder of a checkpoint, or of a registered model that is brought here and verified."""
    from datasets_manifest.errors import InputError

    if not model.startswith("models:/"):
        if not Path(model).is_dir():
            wanted = "a checkpoint folder, or models:/NAME@alias"
            raise InputError("there is no such folder", field="MODEL", value=model, wanted=wanted)
        return Path(model)
    from services.registry import client_for, fetch_bundle

    return fetch_bundle(client_for(tracking_uri, storage), model)


def predict(
    model: Model,
    text: Annotated[list[str] | None, typer.Option(help="A text of the sample; may be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture of the sample; may be repeated.")] = None,
    data: Annotated[str | None, typer.Option(help="A manifest: predict its records instead.")] = None,
    split: Annotated[str, typer.Option(help="Split of --data.")] = "val",
    out: Annotated[
        Path | None, typer.Option(help="For --data: a file .parquet (in this process) or a folder (on Ray, resumable).")
    ] = None,
    workers: Annotated[int, typer.Option(help="Ray actors, when --out is a folder.", min=1)] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: a local one.")] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Predict one sample, or all records of a manifest."""
    from datasets_manifest.errors import InputError

    use_data_root(data_root)
    if data is not None:
        if out is None:
            raise InputError("is missing", field="--out", wanted="a file .parquet or a folder for the predictions")
        if text or image:
            raise InputError("does not go with --text and --image", field="--data", value=data)
        if out.suffix != ".parquet":
            _predict_on_ray(find_bundle(model, tracking_uri, storage), data, split, out, workers, address, json_)
            return
        _predict_manifest(load_predictor(model, tracking_uri, storage), data, split, out, json_)
        return
    if not text and not image:
        raise InputError("nothing to predict", field="--text, --image", wanted="one of them, or --data")
    for path in image or []:
        if not path.is_file():
            raise InputError("there is no such picture", file=path, field="--image")
    predictor = load_predictor(model, tracking_uri, storage)
    result = predictor.predict([list(text or [])], [[str(path) for path in image or []]])
    if result.bad[0]:
        raise InputError("cannot be used as a picture", field="--image", value=result.bad[0])
    probs = dict(zip(predictor.classes, map(float, result.probs[0]), strict=True))
    if json_:
        print_json({"label": result.labels[0], "probs": probs, "disagreement": float(result.disagreement[0])})
        return
    typer.echo(result.labels[0])
    for name, prob in probs.items():
        typer.echo(f"  {name:16} {percent(prob)}")


def _predict_manifest(predictor: Any, data: str, split: str, out: Path, as_json: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datasets_manifest.manifest.readers import read_split
    from datasets_manifest.manifest.schema import load_manifest

    table = read_split(load_manifest(data), split).table
    result = predictor.predict(table["texts"].to_pylist(), table["images"].to_pylist())
    columns: dict[str, Any] = {"id": table["id"], "label": result.labels, "disagreement": result.disagreement}
    columns |= {f"prob_{name}": result.probs[:, c] for c, name in enumerate(predictor.classes)}
    columns["bad_pictures"] = pa.array(result.bad, pa.list_(pa.string()))
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    pq.write_table(pa.table(columns), draft)
    os.replace(draft, out)
    bad = sum(bool(messages) for messages in result.bad)
    summary = {"records": table.num_rows, "with_bad_pictures": bad, "out": str(out)}
    if as_json:
        print_json(summary)
    else:
        typer.echo(f"{table.num_rows} records predicted, {bad} with pictures that could not be used → {out}")


def _predict_on_ray(
    bundle: Path, data: str, split: str, out: Path, workers: int, address: str | None, as_json: bool
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from services.inference import predict_manifest
    from trainers.cluster.local_cluster import start_ray

    start_ray(address)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("records", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = predict_manifest(bundle, data, out, split=split, workers=workers, on_rows=show)
    if as_json:
        print_json(summary.as_dict())
        return
    typer.echo(
        f"{summary.records} records: {summary.bad} could not be predicted, {summary.with_bad_pictures} lack some "
        f"pictures, {summary.resumed} were there already → {summary.out}"
    )


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="A manifest with labels.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    tracking_uri: TrackingUri = None,
    storage: Storage = Path("runs"),
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Accuracy, macro-F1, confusion matrix and calibration on labelled records."""
    from services.assessment import assess

    use_data_root(data_root)
    predictor = load_predictor(model, tracking_uri, storage)
    metrics = assess(predictor, data, split)
    if json_:
        print_json(metrics)
        return
    typer.echo(f"{metrics['records']} labelled records of {data}, {split}")
    typer.echo(f"  accuracy {percent(metrics['accuracy'])}   macro-F1 {percent(metrics['macro_f1'])}")
    typer.echo(f"  expected calibration error {percent(metrics['calibration_error'])}")
    typer.echo("  confusion (rows: true, columns: predicted)")
    width = max(map(len, predictor.classes)) + 2
    typer.echo("  " + " " * width + "".join(f"{name:>{width}}" for name in predictor.classes))
    for name, row in zip(predictor.classes, metrics["confusion"], strict=True):
        typer.echo(f"  {name:{width}}" + "".join(f"{count:{width}}" for count in row))
