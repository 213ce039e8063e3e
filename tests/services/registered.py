"""Real registered models for the tests of the service: two small checkpoints that differ, in a SQLite store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.model.card import model_folder
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import RunLink, open_client
from trainers.tracking.registration import ModelToLog, register, signature_for
from trainers.worker.reports import evaluation_tensors

NAME = "m2can-mountain"


@dataclass(frozen=True)
class Registered:
    """folder: with postcards and checkpoints. storage: with the store. bundles: of version 1 and 2."""

    folder: Path
    storage: Path
    bundles: list[Path]

    @property
    def uri(self) -> str:
        return resolve_tracking_uri(None, self.storage)

    @property
    def client(self) -> MlflowClient:
        return open_client(self.uri)

    @property
    def manifest(self) -> Path:
        return self.folder / "postcards" / "mountain" / "manifest.yaml"


def register_two(folder: Path) -> Registered:
    """Version 1 after one epoch, version 2 after two; `candidate` is at version 2."""
    loop = make_loop(prepared_run(folder, ["train.epochs=2", "run.name=tiny"]))
    storage, bundles = folder / "runs", []
    for epoch in (1, 2):
        _, scored = loop.run_epoch()
        place = folder / f"checkpoint-{epoch}"
        loop.save(place, evaluation_tensors(loop, scored))
        bundles.append(model_folder(place))
        link = RunLink.open(resolve_tracking_uri(None, storage), "m2can", storage, f"tiny-{epoch}", {})
        link.log_params({"train.epochs": epoch, "train.seed": 1})
        tags = {
            "m2can.target": "mountain",
            "m2can.sources": "seaside,city",
            "m2can.target_accuracy_chosen": f"0.{epoch}",
        }
        example = pd.DataFrame({"text": ["a fine day"], "image": [None]})
        register(link, ModelToLog(bundles[-1], NAME, tags, example, signature_for(loop.card.classes)))
    return Registered(folder, storage, bundles)
