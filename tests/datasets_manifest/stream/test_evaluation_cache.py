"""Evaluation's views are made once, as many as fit, and are the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.evaluation_cache import EvaluationCache, host_bytes
from datasets_manifest.stream.local_stream import LocalStream
from tests.trainers.tiny_run import prepared_run
from trainers.compute.device_batches import make_encoding


class Counting:
    """A source that tells which rows were asked of it."""

    def __init__(self, source: LocalStream) -> None:
        self.source, self.asked = source, list[int]()

    def train(self, slices: list[Any], encoding: Encoding) -> Iterator[HostBatch]:
        return self.source.train(slices, encoding)

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch]:
        for host in self.source.evaluate(batches, encoding):
            self.asked += host.rows.tolist()
            yield host


@pytest.fixture
def made(tmp_path: Path) -> tuple[Counting, list[np.ndarray], Encoding]:
    run = prepared_run(tmp_path)
    return (
        Counting(LocalStream(run.corpus.table)),
        np.split(np.arange(20), 5),
        make_encoding(run.recipe, run.card.vocabulary),
    )


def alike(one: HostBatch, other: HostBatch) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "pictures", "owner", "rows")
    )


def test_a_second_evaluation_reads_nothing(made: tuple[Counting, list[np.ndarray], Encoding]) -> None:
    source, batches, encoding = made
    kept = EvaluationCache(source, 2**30)
    first, second = list(kept.evaluate(batches, encoding)), list(kept.evaluate(batches, encoding))
    assert source.asked == list(range(20))
    wanted = list(LocalStream(source.source.table).evaluate(batches, encoding))
    assert all(alike(*pair) for pair in zip(first, wanted, strict=True))
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert kept.bytes == sum(map(host_bytes, wanted))


def test_what_does_not_fit_is_read_again_and_stays_in_its_place(
    made: tuple[Counting, list[np.ndarray], Encoding],
) -> None:
    source, batches, encoding = made
    wanted = list(source.evaluate(batches, encoding))
    kept = EvaluationCache(source, host_bytes(wanted[0]) + host_bytes(wanted[1]))
    list(kept.evaluate(batches, encoding))
    source.asked.clear()
    again = list(kept.evaluate(batches, encoding))
    assert source.asked == list(range(8, 20))
    assert [host.rows.tolist() for host in again] == [rows.tolist() for rows in batches]
    assert all(alike(*pair) for pair in zip(again, wanted, strict=True))
    assert kept.bytes <= kept.most_bytes < kept.bytes_of(50) + 1


def test_nothing_is_kept_without_room(made: tuple[Counting, list[np.ndarray], Encoding]) -> None:
    source, batches, encoding = made
    kept = EvaluationCache(source, 0)
    for _ in range(2):
        assert len(list(kept.evaluate(batches, encoding))) == 5
    assert len(source.asked) == 40 and kept.bytes == kept.bytes_of(9) == 0


def test_another_encoding_begins_anew(made: tuple[Counting, list[np.ndarray], Encoding]) -> None:
    source, batches, encoding = made
    kept = EvaluationCache(source, 2**30)
    list(kept.evaluate(batches, encoding))
    other = replace(encoding, pictures=encoding.pictures.model_copy(update={"crop": 32}))
    assert next(kept.evaluate(batches, other)).pictures.shape[1:] == (32, 32, 3)
