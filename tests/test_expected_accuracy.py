"""The benchmark of the expected accuracy: its targets, its choice, and that the product has what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.cached import CachedFeatures
from benchmarks.expected import best_estimator, errors_of, left_out, nine_of_ten, table, with_target
from datasets_manifest.records.corpus import Corpus, Part
from trainers.validators.expected import FACTOR, SIGNALS, SPREAD

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "expected.json"


def test_the_estimator_is_the_one_that_was_measured() -> None:
    runs = json.loads(RESULTS.read_text())["runs"]
    assert best_estimator(runs) == (SIGNALS, FACTOR)
    assert round(nine_of_ten(left_out(runs, relative=True)), 1) == SPREAD


def run(data: str, accuracy: float, shift: float = 0.0, **signals: float) -> dict[str, Any]:
    found = {"thresholded": 0.5, "difference": 0.5, "agreement": 0.5} | signals
    return {
        "data": data,
        "shift": shift,
        "chosen": 0,
        "epochs": [{"accuracy": accuracy, "val": accuracy, "source": 1.0, "signals": found}],
    }


def test_a_data_set_is_judged_by_what_is_best_on_the_others() -> None:
    runs = [
        run("a", 0.8, thresholded=0.8, difference=0.8),
        run("b", 0.6, thresholded=0.6, agreement=0.6),
        run("b", 0.7, 1.0, thresholded=0.7, agreement=0.7),
    ]
    assert best_estimator(runs[:1]) == (("thresholded", "difference"), 1.0)
    judged = left_out(runs)
    assert judged["a"] == [pytest.approx(-0.15)]  # with the agreement, which is right on b
    assert judged["b"] == [pytest.approx(-0.05), pytest.approx(-0.1)]  # with the difference, which is right on a
    assert left_out(runs, relative=True)["a"] == [pytest.approx(-0.15 / 0.35)]  # of what looks wrong
    assert "| difference alone | 0.0 (+0.0) | 15.0 (-15.0) | 5.0 | 20.0 |" in table({"runs": runs})
    assert errors_of(runs, (("thresholded",), 1.5))["a"] == [
        pytest.approx(-0.1)
    ]  # a fifth looks wrong: three tenths are


def test_another_target_with_other_shares_of_its_classes() -> None:
    labels = np.tile([0, 1, 2], 60)
    names = ("a", "b", "c")
    train = [Part(name, "train", 40 * i, 40 * i + 40) for i, name in enumerate(names)]
    val = [Part(name, "val", 120 + 20 * i, 140 + 20 * i) for i, name in enumerate(names)]
    corpus = Corpus(pa.table({"label": labels, "row": np.arange(180)}), ["x", "y", "z"], train, list(val), [])
    rows_VNK = torch.arange(180.0).reshape(1, 180, 1)
    features = CachedFeatures(corpus, None, rows_VNK, -rows_VNK)  # type: ignore[arg-type]
    plain = with_target(features, 0, 0.0, seed=0)
    assert [part.domain for part in plain.corpus.train] == ["b", "c", "a"]
    assert plain.text_VNK[0, plain.corpus.val[-1].rows, 0].tolist() == list(range(120, 140))
    moved = with_target(features, 0, 0.5, seed=0)
    rows = moved.corpus.table["row"].to_numpy()
    assert np.array_equal(rows, moved.text_VNK[0, :, 0].numpy()) and np.array_equal(
        rows, -moved.picture_VNK[0, :, 0].numpy()
    )
    assert np.array_equal(moved.corpus.labels, labels[rows]) and len(set(rows)) == len(rows)
    assert [len(part) for part in moved.corpus.train[:-1]] == [40, 40]
    shares = [
        np.bincount(moved.corpus.labels[part.rows], minlength=3) / len(part)
        for part in (moved.corpus.train[-1], moved.corpus.val[-1])
    ]
    assert np.ptp(shares[0]) > 0.2 and np.abs(shares[0] - shares[1]).max() < 0.1
