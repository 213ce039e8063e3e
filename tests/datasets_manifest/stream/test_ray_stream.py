"""Ray Data gives the batches that one process makes, in order, and a pipeline that is left early ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray

from datasets_manifest.records.sharded_table import ShardWriter
from datasets_manifest.stream import ray_stream
from datasets_manifest.stream.cpu_budget import CpuBudget
from datasets_manifest.stream.encode import HostBatch, index_table
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.plan import DomainPool, EpochPlan
from datasets_manifest.stream.ray_stream import DataStalled, Stream, make_dataset
from tests.trainers.tiny_run import prepared_run
from trainers.compute.device_batches import make_encoding

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


def test_rows_in_shards_make_the_same_batches(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary, strong=True)
    pools = [DomainPool(range(part.start, part.stop), np.zeros(len(part), np.int64)) for part in run.corpus.train]
    plan = EpochPlan.build(seed=0, epoch=1, pools=pools, samples_per_epoch=50, batch_size=7)
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path / "shards")
    for batch in run.corpus.table.to_batches(max_chunksize=20):
        writer.write(batch)
    stream = Stream(ray.put(writer.finish()), CpuBudget(cpus=1))
    slices = list(plan.worker_steps(0, 1))
    wanted = LocalStream(run.corpus.table).train(slices, encoding)
    for found, local in zip(stream.train(slices, encoding), wanted, strict=True):
        require_equal(found, local)


def test_two_pipelines_go_side_by_side_and_one_left_early_ends(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1))
    local = LocalStream(run.corpus.table)
    batches = [np.arange(30)] * 20
    first = stream.evaluate(batches, encoding)
    require_equal(next(first), next(local.evaluate(batches, encoding)))
    second = stream.evaluate([np.arange(30, 40)], encoding)
    require_equal(next(second), next(local.evaluate([np.arange(30, 40)], encoding)))
    require_equal(next(first), next(local.evaluate(batches, encoding)))
    assert ray.get(stream._runner.running.remote()) == 2
    first.close()
    second.close()
    assert ray.get(stream._runner.running.remote()) == 0


def test_an_error_of_a_task_reaches_the_reader(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(tmp_path)
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1))
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    with pytest.raises(ray.exceptions.RayError, match="out of bounds"):
        list(stream.evaluate([np.array([10**6])], encoding))
    assert len(list(stream.evaluate([np.arange(5)], encoding))) == 1  # the stream can go on


@pytest.mark.parametrize(("cpus", "tasks"), [(0.5, 1), (1, 1), (1.5, 2), (15, 15)])
def test_as_many_tasks_as_cores(tmp_path: Path, ray_cluster: None, cpus: float, tasks: int) -> None:
    run = prepared_run(tmp_path)
    index = index_table(np.zeros(30), np.arange(30), np.zeros(30))
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    dataset = make_dataset(ray.put(run.corpus.table), index, encoding, CpuBudget(cpus))
    limit = dataset.context.execution_options.resource_limits.cpu
    assert limit == pytest.approx(cpus + cpus / tasks)  # one more waits


@ray.remote
class _Holder:
    def ready(self) -> None:
        pass


@contextmanager
def held(cpus: float) -> Iterator[None]:
    """Somebody else has so many of the cluster's four CPUs."""
    holder = _Holder.options(num_cpus=cpus).remote()
    ray.get(holder.ready.remote(), timeout=60)
    try:
        yield
    finally:
        ray.kill(holder)


def test_smaller_tasks_where_the_first_ones_no_longer_fit(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of the node that had room for them."""
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    monkeypatch.setattr(ray_stream, "TOLD_AFTER_S", 2.0)
    budgets = iter([CpuBudget(cpus=1)])
    told: list[str] = []
    stream = Stream(
        ray.put(run.corpus.table), lambda: next(budgets, CpuBudget(cpus=0.5)), tell=told.append, timeout_s=100
    )
    batches = [np.arange(30)] * 3
    with held(3.5):
        for found, wanted in zip(
            stream.evaluate(batches, encoding),
            LocalStream(run.corpus.table).evaluate(batches, encoding),
            strict=True,
        ):
            require_equal(found, wanted)
    assert told[0] == "no data have come for 2 s: a data task takes 1 CPUs, 0.5 of the cluster's 4 are free"
    assert "a data task takes 0.5 CPUs from now on" in told[1]


def test_tasks_without_a_cpu_of_their_own_where_others_hold_all(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    monkeypatch.setattr(ray_stream, "TOLD_AFTER_S", 1.0)
    monkeypatch.setattr(ray_stream, "STARVED_AFTER_S", 2.0)
    told: list[str] = []
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1), tell=told.append)
    batches, beside = [np.arange(30)] * 8, [np.arange(30, 50)] * 2
    local = LocalStream(run.corpus.table)
    first, second = stream.evaluate(batches, encoding), stream.evaluate(beside, encoding)
    require_equal(next(first), next(local.evaluate(batches, encoding)))
    with held(4):
        for found, wanted in zip(second, local.evaluate(beside, encoding), strict=True):
            require_equal(found, wanted)
        for found in first:  # its pipeline ended with the process it was in, and began again where it was
            require_equal(found, next(local.evaluate(batches, encoding)))
    assert any("0 of the cluster's 4 are free" in line for line in told)
    assert any(line.startswith("others hold the CPUs") for line in told)


def test_data_that_do_not_come_are_an_error_in_the_end(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared_run(tmp_path)
    monkeypatch.setattr(ray_stream, "TOLD_AFTER_S", 0.5)
    stream = Stream(ray.put(run.corpus.table), CpuBudget(cpus=1), timeout_s=2)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    with (
        held(4),
        pytest.raises(DataStalled, match=r"0 of the cluster's 4 are free; given up after . s \(cluster\.timeo"),
    ):
        next(stream.evaluate([np.arange(5)], encoding))
