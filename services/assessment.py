"""How good a model is on labelled records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.schema import load_manifest
from datasets_manifest.records.readers import read_split, remap_labels
from trainers.loop.evaluation import calibration_error, classification_metrics, confusion
from trainers.model.predictor import Predictor


def assess(predictor: Predictor, data: str | Path, split: str = "val") -> dict[str, Any]:
    """Accuracy, macro-F1, confusion matrix (rows: true) and expected calibration error.

    Raises:
        InputError: the manifest has other classes than the model, or no labels.
    """
    manifest = load_manifest(data)
    if set(manifest.classes) != set(predictor.classes):
        raise InputError(
            "has other classes than the model",
            file=manifest.path,
            field="classes",
            value=list(manifest.classes),
            wanted=", ".join(predictor.classes),
        )
    table = remap_labels(read_split(manifest, split).table, manifest.classes, predictor.classes)
    labels = table["label"].to_numpy()
    if not (labels >= 0).any():
        raise InputError("no record has a label", file=manifest.path, field=f"splits.{split}")
    result = predictor.predict(table["texts"].to_pylist(), table["images"].to_pylist())
    predicted = result.probs.argmax(1)
    metrics: dict[str, Any] = {"records": int((labels >= 0).sum())} | classification_metrics(labels, predicted)
    metrics["calibration_error"] = calibration_error(labels, predicted, result.probs.max(1))
    metrics["confusion"] = confusion(labels, predicted, len(predictor.classes)).tolist()
    metrics["with_bad_pictures"] = sum(bool(messages) for messages in result.bad)
    return metrics
