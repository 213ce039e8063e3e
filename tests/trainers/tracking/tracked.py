"""What the tests of tracking share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from trainers.journal.journal import EpochRecord, Journal
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_client
from trainers.tracking.registration import ModelToLog, signature_for
from trainers.tracking.sender import Sender

PATIENCE_S = 120.0


def record(epoch: int, **metrics: float) -> EpochRecord:
    return EpochRecord(epoch, epoch * 10, 1_700_000_000.0 + epoch, {"loss/total": 1.0 / epoch, **metrics})


def make_bundle(folder: Path) -> Path:
    """Files of the right names; the registry does not look into them."""
    folder.mkdir(exist_ok=True)
    for name in ("model.safetensors", "model.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def model_for(tmp_path: Path, name: str) -> ModelToLog:
    example = pd.DataFrame({"text": ["a fine day"], "image": [None]})
    return ModelToLog(
        make_bundle(tmp_path / "bundle"), name, {"m2can.target": "c"}, example, signature_for(["no", "yes"])
    )


def sender(store: Path, journal: Journal, name: str, uri: str | None = None, **changes: Any) -> Sender:
    params = changes.pop("params", {"train.epochs": 3})
    return Sender(
        uri or resolve_tracking_uri(None, store), "m2can", name, journal, params, {"m2can.target": "c"}, store,
        interval_s=0.05,
    )  # fmt: skip


def client(store: Path) -> MlflowClient:
    return open_client(resolve_tracking_uri(None, store))


def rows(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(row.step, row.value) for row in client.get_metric_history(run_id, metric)]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.01)
