"""`m2can predict` and `m2can evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.options import (
    RUNS,
    AsJson,
    DataRoot,
    ModelArgument,
    RayCluster,
    Storage,
    TrackingUri,
    load_predictor,
    show,
    use_data_root,
)
from services.cli.output import percent

if TYPE_CHECKING:
    from services.batch_prediction import BatchSummary
    from trainers.model.predictor import Predictions

AbstainBelow = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Give no label where the probability of the label is below this, 0 to 1."),
]


def predict(
    model: ModelArgument,
    text: Annotated[list[str] | None, typer.Option(help="A text of the sample; may be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture of the sample; may be repeated.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A manifest, or a file of records (.csv, .tsv, .jsonl, .parquet): predict them instead."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --data; `all`: of all splits.")] = "all",
    out: Annotated[
        str | None,
        typer.Option(
            help="For --data: a file .csv, .jsonl or .parquet (in this process), or a folder/ (on Ray, resumable)."
        ),
    ] = None,
    abstain_below: AbstainBelow = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet",
            help="For --out FILE: also write a sample of features and predictions, for `m2can models drift`.",
        ),
    ] = None,
    sample_size: Annotated[int, typer.Option(help="Records in the sample.", min=20)] = 1000,
    workers: Annotated[int, typer.Option(help="Ray actors, when --out is a folder.", min=1)] = 1,
    address: RayCluster = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """Predict one sample, or all records of a manifest or of a file."""
    from datasets_manifest.errors import InputError
    from services.model_files import model_files
    from services.prediction_output import is_file_output

    use_data_root(data_root)
    if data is None:
        for field, value in (("--out", out), ("--sample", sample)):
            if value is not None:
                raise InputError(
                    "goes with --data", field=field, value=value, wanted="--data, too; one sample is printed"
                )
        _predict_sample(list(text or []), list(image or []), model, tracking_uri, storage, abstain_below, json_)
        return
    if out is None:
        wanted = "a file .csv, .jsonl or .parquet, or a folder/ for the predictions"
        raise InputError("is missing", field="--out", wanted=wanted)
    if sample is not None:
        _require_sample(sample, out)
    if text or image:
        raise InputError("does not go with --text and --image", field="--data", value=data)
    bundle = model_files(model, tracking_uri, storage)
    if is_file_output(out):
        sampled = None if sample is None else (sample, sample_size)
        summary = _predict_to_file(bundle, data, split, Path(out), abstain_below, model, sampled)
    else:
        summary = _predict_on_ray(bundle, data, split, Path(out), workers, address, abstain_below)
    show(json_, summary, _in_words(summary, split))


def _predict_sample(
    texts: list[str],
    images: list[Path],
    model: str,
    tracking_uri: str | None,
    storage: Path,
    abstain_below: float | None,
    as_json: bool,
) -> None:
    from datasets_manifest.errors import InputError

    if not texts and not images:
        raise InputError("nothing to predict", field="--text, --image", wanted="one of them, or --data")
    for path in images:
        if not path.is_file():
            raise InputError("there is no such picture", file=path, field="--image")
    predictor = load_predictor(model, tracking_uri, storage)
    result = predictor.predict([texts], [images])
    if result.bad[0]:
        raise InputError("cannot be used as a picture", field="--image", value=result.bad[0])
    confidence = float(result.confidence[0])
    abstained = abstain_below is not None and confidence < abstain_below
    label = None if abstained else result.labels[0]
    probs = dict(zip(predictor.classes, map(float, result.probs[0]), strict=True))
    content = {"label": label, "confidence": confidence, "probs": probs, "disagreement": float(result.disagreement[0])}
    if abstain_below is not None:
        content["abstained"] = abstained
    first = label or f"no label: the surest class has {percent(confidence)}, below {percent(abstain_below)}"
    show(as_json, content, first, *(f"  {name:16} {percent(prob)}" for name, prob in probs.items()))


def _require_sample(sample: Path, out: str) -> None:
    from datasets_manifest.errors import InputError
    from services.drift.sample import require_sample
    from services.prediction_output import is_file_output

    require_sample(sample)
    if not is_file_output(out):
        wanted = "--out FILE; `m2can models drift MODEL --on MANIFEST` needs no sample"
        raise InputError("does not go with a folder", field="--sample", value=str(sample), wanted=wanted)


def _predict_to_file(
    bundle: Path,
    data: str,
    split: str,
    out: Path,
    abstain_below: float | None,
    model: str,
    sampled: tuple[Path, int] | None,
) -> BatchSummary:
    from datasets_manifest.records.readers import read_for_prediction
    from services.batch_prediction import predict_rows, summary_of
    from services.drift.sample import Sampler
    from services.prediction_output import withhold, write_predictions
    from services.records_to_predict import manifest_to_predict
    from trainers.exported.predictor import load_predictor as load
    from trainers.model.reference import fingerprint

    seen: list[Predictions] = []
    predictor = load(bundle)
    manifest, guessed = manifest_to_predict(data, predictor.classes)
    _tell(guessed)
    table = predict_rows(predictor, read_for_prediction(manifest, split), seen.append)
    if sampled is not None:
        sampler = Sampler(*sampled)
        sampler.add(model, fingerprint(bundle), seen[0])
        sampler.write()
    if abstain_below is not None:
        table = withhold(table, abstain_below)
    write_predictions(table, out)
    return summary_of(table, out)


def _predict_on_ray(
    bundle: Path, data: str, split: str, out: Path, workers: int, address: str | None, abstain_below: float | None
) -> BatchSummary:
    from rich.console import Console
    from rich.progress import Progress

    from services.batch_prediction import predict_manifest
    from trainers.cluster.local_cluster import start_ray

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("records", total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return predict_manifest(
            bundle,
            data,
            out,
            split=split,
            workers=workers,
            abstain_below=abstain_below,
            on_rows=update,
            start_ray=lambda: start_ray(address),
            on_guess=_tell,
        )


def _tell(guessed: str | None) -> None:
    if guessed is not None:
        typer.echo(f"note: {guessed}", err=True)


def _in_words(summary: BatchSummary, split: str) -> str:
    parts = [f"{summary.bad} could not be predicted", f"{summary.with_bad_pictures} lack some pictures"]
    if summary.abstained is not None:
        sure = summary.records - summary.bad - summary.abstained
        coverage = percent(sure / summary.records) if summary.records else "none"
        parts.append(f"{summary.abstained} have no label for want of confidence (coverage {coverage})")
    if summary.resumed:
        parts.append(f"{summary.resumed} were there already")
    return f"{summary.records} records ({split}): {', '.join(parts)} → {summary.out}"


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="A manifest with labels.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "val",
    abstain_below: AbstainBelow = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what is found: .json has all of it, .csv a column a model."),
    ] = None,
    tracking_uri: TrackingUri = None,
    storage: Storage = RUNS,
    json_: AsJson = False,
    data_root: DataRoot = None,
) -> None:
    """How good a model is on labelled records, beside what its run found before any training: floor and zero-shot."""
    from services.assessment import assess, measures_by_model, require_assessment_file, write_assessment
    from services.model_files import model_files, models_without_training
    from trainers.exported.predictor import load_predictor as load

    use_data_root(data_root)
    if out is not None:
        require_assessment_file(out)
    files = model_files(model, tracking_uri, storage)
    predictor = load(files)
    metrics = assess(predictor, data, split, abstain_below)
    metrics["without_training"] = {
        name: {"absent": place} if isinstance(place, str) else assess(load(place), data, split, abstain_below)
        for name, place in models_without_training(model, files, tracking_uri, storage).items()
    }
    if out is not None:
        write_assessment(metrics, out)
    columns, rows = measures_by_model(metrics)
    first = max(map(len, rows)) + 2
    lines = [f"{metrics['records']} labelled records of {data}, {split}"]
    lines.append("  " + " " * first + "".join(f"{name:>{_COLUMN}}" for name in columns))
    for name, values in rows.items():
        lines.append(f"  {name:{first}}" + "".join(f"{percent(value):>{_COLUMN}}" for value in values))
    for name, found in metrics["without_training"].items():
        if "absent" in found:
            lines.append(f"  no {name.replace('_', '-')}: {found['absent']}")
    lines += _of_classes(metrics)
    show(json_, metrics, *lines)


_COLUMN = 12


def _of_classes(metrics: dict[str, Any]) -> list[str]:
    """Lines about the model alone."""
    lines = []
    if (sure := metrics.get("abstaining")) is not None:
        lines.append(
            f"  confidence of {percent(sure['below'])} or more: {sure['records']} records, coverage "
            f"{percent(sure['coverage'])}, accuracy {percent(sure['accuracy'])}"
        )
    if metrics["with_bad_pictures"] or metrics["not_predicted"]:
        lines.append(
            f"  {metrics['with_bad_pictures']} records lack some pictures that cannot be read; {metrics['not_predicted']} "
            f"have nothing else and count as wrong"
        )
    width = max(9, *map(len, metrics["per_class"])) + 2
    lines.append("  " + " " * width + "".join(f"{name:>{width}}" for name in ("precision", "recall", "F1", "records")))
    for name, row in metrics["per_class"].items():
        cells = [percent(row[key]) for key in ("precision", "recall", "f1")] + [str(row["records"])]
        lines.append(f"  {name:{width}}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines.append("  confusion (rows: true, columns: predicted)")
    lines.append("  " + " " * width + "".join(f"{name:>{width}}" for name in metrics["per_class"]))
    for name, row in zip(metrics["per_class"], metrics["confusion"], strict=True):
        lines.append(f"  {name:{width}}" + "".join(f"{count:{width}}" for count in row))
    return lines
