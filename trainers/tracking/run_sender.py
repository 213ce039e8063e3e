"""A run's sender and its model, with the names and tags they have in MLflow."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pandas as pd  # type: ignore[import-untyped]

from datasets_manifest.records.corpus import Corpus
from trainers.journal.journal import Journal
from trainers.model.card import ModelCard, load_card, model_folder
from trainers.tracking.address import resolve_tracking_uri, run_storage, run_store, tracking_uri
from trainers.tracking.mlflow_check import require_experiment
from trainers.tracking.mlflow_compat import PARENT_TAG
from trainers.tracking.provenance import code_version, data_fingerprint, environment, job_tags, recipe_hash
from trainers.tracking.registration import IF_NOT_WORSE, SCORE_TAG, SOURCE_TAG, ModelToLog, require_name, signature_for
from trainers.tracking.sender import Sender, TrackedRun

_COMPARED = {SCORE_TAG: "selection/score", SOURCE_TAG: "source/val/accuracy"}
_EXAMPLE = pd.DataFrame({"text": ["a caption of one sentence"], "image": [None]})


def make_sender(
    name: str,
    folder: Path,
    card: ModelCard,
    corpus: Corpus,
    tags: Mapping[str, str] = MappingProxyType({}),
    *,
    precision: str | None = None,
) -> Sender:
    """The sender of the run `name` in `folder`.

    Args:
        tags: are added to those that every run has.
        precision: what the workers compute in, a parameter of the run; None: it is not known.
    """
    recipe, runs = card.recipe, run_store(card.recipe)
    return Sender(
        tracking_uri(recipe),
        recipe.tracking.experiment,
        name,
        Journal(str(folder / "journal")),
        params=recipe.flat() | ({"precision": precision} if precision else {}),
        tags={
            "m2can.sources": ",".join(card.sources),
            "m2can.target": card.target,
            "m2can.folder": f"{runs}/{name}" if runs is not None else str(folder),
            "m2can.data": data_fingerprint(corpus),
            "m2can.code": code_version(),
            "m2can.environment": environment()["hash"],
            **({"m2can.started_from": card.started_from} if card.started_from else {}),
            **job_tags(),
            **tags,
        },
        storage=run_storage(recipe),
    )


def model_to_log(
    checkpoint: Path,
    epoch: int,
    numbers: Mapping[str, float | None],
    run_name: str,
    tags: Mapping[str, str],
    *,
    metrics: Mapping[str, float] = MappingProxyType({}),
    candidate: str = IF_NOT_WORSE,
) -> ModelToLog:
    """A chosen checkpoint as it goes into the registry.

    Args:
        numbers: accuracies of its run.
        tags: of its MLflow run.
        metrics: of the chosen epoch: by its label-free score and source accuracy versions are compared.
        candidate: see ModelToLog.

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
            **{tag: f"{metrics[name]:.4f}" for tag, name in _COMPARED.items() if name in metrics},
        },
        input_example=_EXAMPLE,
        signature=signature_for(card.classes),
        candidate=candidate,
        gate=card.recipe.selection.gate,
    )


def require_registrable(name: str, experiment: str, uri: str | None, storage: Path) -> None:
    """Look at what `register_import` needs, before the model folder is written. MLflow may be away: the folder stays then.

    Raises:
        InputError: the name cannot be a model's, or the experiment was deleted in MLflow.
    """
    require_name(name, "--register")
    with contextlib.suppress(OSError):
        require_experiment(resolve_tracking_uri(uri, storage.resolve()), experiment)


def register_import(
    bundle: Path,
    card: ModelCard,
    name: str,
    uri: str | None,
    storage: Path,
    tags: Mapping[str, str] = MappingProxyType({"m2can.imported": "true"}),
) -> TrackedRun:
    """Register a model folder that no run of ours made, under an MLflow run of its own.

    Args:
        tags: beside those of sources and target.

    Raises:
        TrackingUnavailable: MLflow is unreachable; the folder stays.
    """
    model = ModelToLog(
        bundle=bundle,
        registered_name=name,
        tags={"m2can.sources": ",".join(card.sources), "m2can.target": card.target, **tags},
        input_example=_EXAMPLE,
        signature=signature_for(card.classes),
    )
    with tempfile.TemporaryDirectory(prefix="m2can-import-") as empty:
        sender = Sender(
            resolve_tracking_uri(uri, storage.resolve()),
            card.recipe.tracking.experiment,
            f"{'import' if 'm2can.imported' in tags else 'adapt'}-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            Journal(empty),
            params=card.recipe.flat(),
            tags=model.tags,
            storage=storage.resolve(),
        )
        sender.start()
        return sender.finish("FINISHED", model=model)
