"""How good a model is on labelled records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import precision_recall_fscore_support

from datasets_manifest.errors import InputError, composed
from datasets_manifest.files import require_file, whole_file
from datasets_manifest.manifest.loading import LoadedManifest, load_manifest
from datasets_manifest.records.class_sets import remap_labels
from datasets_manifest.records.readers import read_split
from trainers.loop.evaluation import calibration_error, classification_metrics, confusion, reliability
from trainers.model.predictor import Predictor


def assess(
    predictor: Predictor, data: str | Path, split: str = "val", abstain_below: float | None = None
) -> dict[str, Any]:
    """How good the labels are that a model gives to labelled records.

    Args:
        abstain_below: confidence, 0 to 1; how the records fare that reach it is told, too.

    Returns:
        records, accuracy, macro_f1, calibration_error (expected), per_class (precision, recall, f1 and records by class
        name; None where nothing counts), confusion (rows: true), with_bad_pictures, and not_predicted: records without
        anything that can be read. These count as wrong in accuracy, and are in no other number. abstaining, if asked: below,
        records, coverage and accuracy of the records that reach the confidence.

    Raises:
        InputError: the manifest has other classes than the model, or no labels.
    """
    manifest = load_manifest(data)
    table = records_for(predictor.classes, manifest, split)
    labels_N = table["label"].to_numpy()
    if not (labels_N >= 0).any():
        wanted = "labels to compare with; `m2can predict` needs none"
        raise InputError("no record has a label", file=manifest.path, field=f"splits.{split}", wanted=wanted)
    result = predictor.predict_usable(table["texts"].to_pylist(), table["images"].to_pylist())
    known_N = labels_N >= 0
    usable_N = known_N & np.array([label is not None for label in result.labels])
    labels, predicted, confidence = labels_N[usable_N], result.probs[usable_N].argmax(1), result.confidence[usable_N]
    right, records = int((labels == predicted).sum()), int(known_N.sum())
    metrics: dict[str, Any] = {"records": records, "accuracy": right / records}
    metrics["macro_f1"] = classification_metrics(labels, predicted).get("macro_f1")
    bins = reliability(labels, predicted, confidence)
    metrics["calibration_error"] = calibration_error(bins) if usable_N.any() else None
    metrics["per_class"] = _per_class(labels, predicted, predictor.classes)
    metrics["confusion"] = confusion(labels, predicted, len(predictor.classes)).tolist()
    metrics["with_bad_pictures"] = sum(bool(messages) for messages in result.bad)
    metrics["not_predicted"] = records - int(usable_N.sum())
    if abstain_below is not None:
        sure = confidence >= abstain_below
        metrics["abstaining"] = {
            "below": abstain_below,
            "records": int(sure.sum()),
            "coverage": int(sure.sum()) / records,
            "accuracy": float((labels == predicted)[sure].mean()) if sure.any() else None,
        }
    return metrics


_MEASURES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "calibration_error": "calibration error"}


def measures_by_model(found: dict[str, Any]) -> tuple[list[str], dict[str, list[float | None]]]:
    """The measures of a model beside those of the ones before training: columns by name, and rows, None where there is none.

    Args:
        found: of `assess`, with `without_training`: the same by name, or `absent` and why.
    """
    models = {"model": found, **found["without_training"]}
    rows = {said: [one.get(key) for one in models.values()] for key, said in _MEASURES.items()}
    for name in found["per_class"]:
        rows[f"F1 of {name}"] = [
            one["per_class"][name]["f1"] if "per_class" in one else None for one in models.values()
        ]
    return [name.replace("_", "-") for name in models], rows


def require_assessment_file(out: Path) -> None:
    """Raises InputError: the file cannot be written, or has another suffix than .json and .csv."""
    if out.suffix.lower() not in (".json", ".csv"):
        problem = "what is found is not written in this form"
        raise InputError(problem, field="--out", value=str(out), wanted="a file .json or .csv")
    require_file(out, "--out")


def write_assessment(found: dict[str, Any], out: Path) -> None:
    """Write what `measures_by_model` takes: all of it as JSON, or its measures as CSV, a column a model.

    Raises:
        OSError: not writable or disk full; nothing is left behind.
    """
    with whole_file(out) as draft:
        if out.suffix.lower() == ".json":
            draft.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        columns, rows = measures_by_model(found)
        with draft.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["measure", *columns])
            writer.writerows([name, *("" if x is None else x for x in values)] for name, values in rows.items())


def records_for(classes: list[str], manifest: LoadedManifest, split: str) -> pa.Table:
    """A split's records, of readers.TABLE_SCHEMA, with labels that index a model's classes.

    Raises:
        InputError: the manifest has other classes than the model.
    """
    if {*map(composed, manifest.classes)} != {*map(composed, classes)}:
        raise InputError(
            "has other classes than the model",
            file=manifest.path,
            field="classes",
            value=list(manifest.classes),
            wanted=", ".join(classes),
        )
    return remap_labels(read_split(manifest, split).table, manifest.classes, classes)


def _per_class(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> dict[str, dict[str, float | None]]:
    places = list(range(len(classes)))
    scores = precision_recall_fscore_support(labels, predicted, labels=places, zero_division=np.nan)
    found: dict[str, dict[str, float | None]] = {}
    for name, *values, records in zip(classes, *scores, strict=True):
        shown = [None if np.isnan(value) else float(value) for value in values]
        found[name] = {**dict(zip(("precision", "recall", "f1"), shown, strict=True)), "records": int(records)}
    return found
