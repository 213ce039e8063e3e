"""From a finished run to what people look at: pictures, the MLflow run, the registered model."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from trainers.cluster.driver import Outcome, Prepared
from trainers.loop.evaluation import calibration_error, confusion
from trainers.model.checkpoint import ModelCard, load_card, model_folder, read_tensors
from trainers.reports import figures
from trainers.reports.run_report import write_report
from trainers.tracking.address import resolve_tracking_uri, tracking_uri
from trainers.tracking.journal import Journal
from trainers.tracking.mlflow_run import PARENT_TAG
from trainers.tracking.provenance import code_version, data_fingerprint, environment, job_tags, recipe_hash
from trainers.tracking.registration import ModelToLog, signature_for
from trainers.tracking.sender import Sender, TrackedRun

_EXAMPLE = pd.DataFrame({"text": ["a caption of one sentence"], "image": [None]})
_EMPTY = np.empty(0)


def make_sender(prepared: Prepared, tags: Mapping[str, str] = MappingProxyType({})) -> Sender:
    """The run's one writer to MLflow; `tags` are added to those every run has."""
    recipe, card = prepared.recipe, prepared.card
    return Sender(
        tracking_uri(recipe),
        recipe.tracking.experiment,
        prepared.name,
        Journal(str(prepared.folder / "journal")),
        params=recipe.flat(),
        tags={
            "m2can.sources": ",".join(card.sources),
            "m2can.target": card.target,
            "m2can.folder": str(prepared.folder),
            "m2can.data": data_fingerprint(prepared.corpus),
            "m2can.code": code_version(),
            "m2can.environment": environment()["hash"],
            **job_tags(),
            **tags,
        },
        storage=Path(recipe.run.storage).resolve(),
    )


def publish(outcome: Outcome, sender: Sender, *, with_model: bool = True) -> TrackedRun:
    """Draw the pictures, log them and the model, register it as `candidate`, end the MLflow run.

    Raises:
        TrackingUnavailable: MLflow is away; everything is in the run's folder.
    """
    report = draw_report(outcome)
    model = None
    if with_model:
        model = model_to_log(outcome.checkpoint, outcome.chosen.epoch, summary(outcome), outcome.name, sender.tags)
    return sender.finish("FINISHED", artifacts=report, model=model)


def model_to_log(
    checkpoint: Path, epoch: int, numbers: Mapping[str, float | None], run_name: str, tags: Mapping[str, str]
) -> ModelToLog:
    """A chosen checkpoint as it goes into the registry.

    Args:
        numbers: what `summary` says of its run.
        tags: of its MLflow run.

    Raises:
        InputError: the checkpoint is not whole.
    """
    bundle = model_folder(checkpoint)
    card = load_card(bundle)
    return ModelToLog(
        bundle=bundle,
        registered_name=card.recipe.tracking.register_as or f"m2can-{card.target}",
        tags={
            **{name: value for name, value in tags.items() if name not in ("m2can.folder", PARENT_TAG)},
            "m2can.run_name": run_name,
            "m2can.recipe": recipe_hash(card.recipe),
            "m2can.validator": card.recipe.selection.validator,
            "m2can.epoch": str(epoch),
            "m2can.checkpoint": str(checkpoint),
            **{f"m2can.{name}": f"{value:.4f}" for name, value in numbers.items() if value is not None},
        },
        input_example=_EXAMPLE,
        signature=signature_for(card.classes),
    )


def register_import(bundle: Path, card: ModelCard, name: str, uri: str | None, storage: Path) -> TrackedRun:
    """Register a model folder that no run of ours made, under an MLflow run of its own.

    Raises:
        TrackingUnavailable: MLflow is away; the folder stays.
    """
    model = ModelToLog(
        bundle=bundle,
        registered_name=name,
        tags={"m2can.sources": ",".join(card.sources), "m2can.target": card.target, "m2can.imported": "true"},
        input_example=_EXAMPLE,
        signature=signature_for(card.classes),
    )
    with tempfile.TemporaryDirectory(prefix="m2can-import-") as empty:
        sender = Sender(
            resolve_tracking_uri(uri, storage.resolve()),
            card.recipe.tracking.experiment,
            f"import-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            Journal(empty),
            params=card.recipe.flat(),
            tags=model.tags,
            storage=storage.resolve(),
        )
        sender.start()
        return sender.finish("FINISHED", model=model)


def summary(outcome: Outcome) -> dict[str, float | None]:
    """Target validation accuracy of the chosen, the last and the oracle epoch, 0 to 1, and the regret: what the choice
    without labels lost against the oracle. None without labels."""

    def accuracy(record: Any) -> float | None:
        return record.metrics.get("target/val/accuracy") if record is not None else None

    best, got = accuracy(outcome.oracle), accuracy(outcome.chosen)
    return {
        "target_accuracy_chosen": accuracy(outcome.chosen),
        "target_accuracy_last": accuracy(outcome.last),
        "target_accuracy_oracle": best,
        "regret": best - got if best is not None and got is not None else None,
    }


def draw_report(outcome: Outcome) -> Path:
    """The run's page, pictures and summary, in its folder `report`."""
    folder = outcome.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures.loss_curves(outcome.records, folder / "loss_curves.png")
    if outcome.recipe.uacr.enabled:
        figures.selection_curves(outcome.records, folder / "selection_curves.png")
    figures.accuracy_curves(outcome.records, outcome.chosen.epoch, folder / "accuracy_curves.png")
    tensors = {
        name: tensor.numpy() for name, tensor in read_tensors(outcome.checkpoint / "evaluation.safetensors").items()
    }
    data = outcome.recipe.data
    val = f"{outcome.card.target}/{data.val_split}"
    content: dict[str, Any] = {
        "validator": outcome.recipe.selection.validator,
        "chosen_epoch": outcome.chosen.epoch,
        "last_epoch": outcome.last.epoch,
        "oracle_epoch": outcome.oracle.epoch if outcome.oracle else None,
        **summary(outcome),
        "verdicts": outcome.verdicts,
    }
    if (tensors.get(f"{val}/true", _EMPTY) >= 0).any():
        true, predicted = tensors[f"{val}/true"], tensors[f"{val}/label"]
        matrix = confusion(true, predicted, len(outcome.card.classes))
        figures.confusion_matrix(matrix, outcome.card.classes, folder / "confusion_matrix.png")
        content |= {
            "target_confusion": matrix.tolist(),
            "target_calibration_error": calibration_error(true, predicted, tensors[f"{val}/prob"]),
        }
    train = f"{outcome.card.target}/{data.train_split}"
    true = tensors[f"{train}/true"]
    known = true >= 0
    if known.any():
        correct = (true == tensors[f"{train}/label"])[known]
        figures.pseudo_label_precision(tensors[f"{train}/score"][known], correct, folder / "pseudo_label_precision.png")
    write_report(outcome, content, tensors, folder)
    (folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
