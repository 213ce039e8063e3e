"""Ray Data gives the batches that one process makes, in order, and a pipeline that is left early ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray

from datasets_manifest.stream.encode import HostBatch
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.ray_stream import CpuBudget, Stream
from tests.trainers.tiny_run import prepared_run
from trainers.model.device_batches import make_encoding

pytestmark = pytest.mark.slow


def require_equal(found: HostBatch, wanted: HostBatch) -> None:
    for name in ("tokens", "mask", "pictures", "owner", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_pipelines_give_the_batches_of_one_process(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    rows = np.random.default_rng(0).permutation(np.tile(np.arange(60), 3))  # several tasks
    batches = [rows[start : start + 7] for start in range(0, len(rows), 7)]
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1))
    wanted = list(LocalStream(run.corpus.table).evaluate(batches, encoding))
    for _ in range(2):  # the second one in the same actor
        for found, local in zip(stream.evaluate(batches, encoding), wanted, strict=True):
            require_equal(found, local)
    assert list(stream.evaluate([], encoding)) == []


def test_a_new_pipeline_ends_the_one_before(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1))
    batches = [np.arange(30)] * 20
    first = stream.evaluate(batches, encoding)
    next(first)
    second = stream.evaluate(batches[:1], encoding)
    require_equal(next(second), next(LocalStream(run.corpus.table).evaluate(batches[:1], encoding)))
    with pytest.raises(RuntimeError, match="another one of the same stream began"):
        list(first)


def test_an_error_of_a_task_reaches_the_reader(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1))
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    with pytest.raises(ray.exceptions.RayError, match="out of bounds"):
        list(stream.evaluate([np.array([10**6])], encoding))
    assert len(list(stream.evaluate([np.arange(5)], encoding))) == 1  # the stream can go on
