"""The benchmark of speed: its other side computes the same, and its rows can be measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import floor, growth
from benchmarks.baseline import PaddedSamples, load, loaded_batch
from benchmarks.speed import ROWS, line
from benchmarks.speed_step import (
    TOLERANCE,
    first_terms,
    largest_difference,
    measure_scoring,
    our_step,
    their_step,
)
from benchmarks.step_parts import QUICK
from benchmarks.streaming import encoding_of, table_of, write_pictures
from datasets_manifest.stream.images import PictureViews
from datasets_manifest.stream.local_stream import LocalStream


def test_the_other_side_takes_the_same_steps() -> None:
    """Three steps: the weights move alike too, running averages included."""
    (step, take), (other, take_other) = our_step(QUICK, "published"), their_step(QUICK)
    for _ in range(3):
        assert largest_difference(first_terms(take()), first_terms(take_other())) < 20 * TOLERANCE
    ours, theirs = step.network.picture_encoder, other.network.picture_encoder
    for name, average in ours.model.named_buffers():
        torch.testing.assert_close(average, theirs.model.get_buffer(name), rtol=1e-3, atol=1e-4)


def test_a_difference_would_be_seen() -> None:
    (_, take), (_, take_other) = our_step(QUICK, "published", "objective.cmcfa=0.6"), their_step(QUICK)
    assert largest_difference(first_terms(take()), first_terms(take_other())) > TOLERANCE


@pytest.mark.slow
def test_scores_are_the_same_and_a_row_can_be_shown() -> None:
    found = measure_scoring(QUICK)
    assert found["ours"] > 0 and found["theirs"] > 0
    assert ROWS["scoring"].what in line("scoring", found)


def test_the_other_loader_gives_the_same_rows(tmp_path: Path) -> None:
    spec = PictureViews(resize=72, crop=64, max_pictures=3)
    paths, encoding = write_pictures(tmp_path, 4, (160, 120)), encoding_of(spec)
    table = table_of(paths, 4)
    samples = PaddedSamples(table["texts"].to_pylist(), table["images"].to_pylist(), encoding)
    (loaded,) = load(samples, [np.array([2, 0])], workers=0)
    batch = loaded_batch(loaded, np.array([[1, 2]]))
    assert batch.pictures.shape == (4, 3, 3, 64, 64) and batch.text.shape == (4, 64)
    assert batch.picture_owner is not None and batch.picture_owner.tolist() == [1, 1, 1, 1]
    (ours,) = LocalStream(table).evaluate([np.array([2, 0])], encoding)
    length = ours.tokens.shape[1]
    np.testing.assert_array_equal(batch.text[:2, :length], ours.tokens[:2])
    assert int(batch.text_mask[:2].sum()) == ours.mask[:2].sum()  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "ratio", "reached"), [("step", 3.5, "yes"), ("memory", 0.7, "no"), ("start", 12.0, "yes")]
)
def test_goals_are_compared_in_their_own_direction(name: str, ratio: float, reached: str) -> None:
    assert f"| {reached} |" in line(name, {"ratio": ratio, "unit": "s"})


def test_more_pictures_cost_more_and_more_classes_little() -> None:
    small = replace(QUICK, repeats=3)
    before, after = growth.step_growth(small, replace(small, pictures=8))
    assert 2 < after / before < 12
    before, after = growth.step_growth(small, replace(small, classes=50))
    assert after / before < 2


@pytest.mark.slow
def test_exchanges_do_not_grow_with_the_rows() -> None:
    """Statistics of fixed width go round, and the gathered rows' features: twice the rows, less than twice the bytes."""
    calls, given = growth.exchange_of(2, replace(QUICK, batch=4))
    more_calls, more = growth.exchange_of(2, replace(QUICK, batch=8))
    assert calls == more_calls and given < more < 2 * given


def test_the_floor_is_below_the_step() -> None:
    row = floor.measure("published", QUICK)
    assert 0 < row["reached"] < 1
    assert "`published`" in floor.line(row)


def test_operations_are_those_of_the_layers() -> None:
    """One product of [4, 8] and [8, 16] forward, and two of the same size backward."""
    layer, rows = torch.nn.Linear(8, 16, bias=False), torch.randn(4, 8, requires_grad=True)
    step: Any = SimpleNamespace(optimizers=[torch.optim.SGD(layer.parameters(), 0.1)])
    needs = floor.demands(step, lambda: layer(rows).sum().backward(), passes=1)
    assert needs["operations"] == 3 * 2 * 4 * 8 * 16
