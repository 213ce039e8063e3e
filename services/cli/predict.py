"""`m2can predict` and `m2can evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import (
    RUNS,
    AsJson,
    DataRoot,
    RayCluster,
    Storage,
    TrackingUri,
    load_predictor,
    model_files,
    show,
    use_data_root,
)
from services.cli.output import percent

Model = Annotated[str, typer.Argument(help="A checkpoint folder, or models:/NAME@alias, models:/NAME/VERSION.")]


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
    address: RayCluster = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
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
            _predict_on_ray(model_files(model, tracking_uri, storage), data, split, out, workers, address, json_)
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
    content = {"label": result.labels[0], "probs": probs, "disagreement": float(result.disagreement[0])}
    show(json_, content, result.labels[0], *(f"  {name:16} {percent(prob)}" for name, prob in probs.items()))


def _predict_manifest(predictor: Any, data: str, split: str, out: Path, as_json: bool) -> None:
    from datasets_manifest.manifest.schema import load_manifest
    from datasets_manifest.records.readers import read_split
    from services.batch_prediction import predict_rows, write_parquet

    table = predict_rows(predictor, read_split(load_manifest(data), split).table)
    write_parquet(table, out)
    bad = sum(bool(messages) for messages in table["bad_pictures"].to_pylist())
    summary = {"records": table.num_rows, "with_bad_pictures": bad, "out": str(out)}
    show(as_json, summary, f"{table.num_rows} records predicted, {bad} with pictures that could not be used → {out}")


def _predict_on_ray(
    bundle: Path, data: str, split: str, out: Path, workers: int, address: str | None, as_json: bool
) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from services.batch_prediction import predict_manifest
    from trainers.cluster.local_cluster import start_ray

    start_ray(address)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("records", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        summary = predict_manifest(bundle, data, out, split=split, workers=workers, on_rows=update)
    text = f"{summary.records} records: {summary.bad} could not be predicted, {summary.with_bad_pictures} lack some "
    show(as_json, summary, f"{text}pictures, {summary.resumed} were there already → {summary.out}")


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="A manifest with labels.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Accuracy, macro-F1, confusion matrix and calibration on labelled records."""
    from services.assessment import assess

    use_data_root(data_root)
    predictor = load_predictor(model, tracking_uri, storage)
    metrics = assess(predictor, data, split)
    width = max(map(len, predictor.classes)) + 2
    lines = [
        f"{metrics['records']} labelled records of {data}, {split}",
        f"  accuracy {percent(metrics['accuracy'])}   macro-F1 {percent(metrics['macro_f1'])}",
        f"  expected calibration error {percent(metrics['calibration_error'])}",
        "  confusion (rows: true, columns: predicted)",
        "  " + " " * width + "".join(f"{name:>{width}}" for name in predictor.classes),
    ]
    for name, row in zip(predictor.classes, metrics["confusion"], strict=True):
        lines.append(f"  {name:{width}}" + "".join(f"{count:{width}}" for count in row))
    show(json_, metrics, *lines)
