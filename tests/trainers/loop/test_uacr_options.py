"""The target's own labels stay unread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.preflight.preparation import Prepared

FAST = ["train.epochs=3", "sam.rho=0", "data.samples_per_epoch=18"]


def run_with(folder: Path, *options: str) -> Prepared:
    return prepared_run(folder, [*FAST, *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards")


def losses(run: Prepared, labels: np.ndarray) -> list[float]:
    loop = make_loop(run)
    loop.batches.labels = labels
    return [loop.run_epoch()[0]["loss/total"] for _ in range(2)]


@pytest.mark.parametrize(
    "options", [("uacr.threshold=0.34",), ("train.target_labels=oracle",)], ids=["pseudo labels", "oracle"]
)
def test_only_the_oracle_reads_the_targets_labels(folder: Path, options: tuple[str, ...]) -> None:
    run = run_with(folder, *options)
    labels = run.corpus.labels
    target = run.corpus.train[-1]
    other = labels.copy()
    other[target.rows] = (other[target.rows] + 1) % 3
    same = losses(run, labels) == losses(run, other)
    assert same == ("train.target_labels=oracle" not in options)
