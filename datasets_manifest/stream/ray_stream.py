"""Plan → Ray Data → batches: one ordered pipeline per worker and epoch.

A worker's rows travel as numbers. Tasks anywhere in the cluster look them up in the shared table, read, decode and
tokenize; the encoded rows come back in the plan's order. A step may span blocks.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets_manifest.stream.encode import Allocate, Encoding, HostBatch, collate, encode_rows, index_table
from datasets_manifest.stream.plan import StepSlice

ROWS_PER_TASK = 96  # a block of 96 rows is about 29 MB at 224 pixels
FIRST_ROWS_PER_TASK = 24  # of the first FIRST_TASKS tasks: the first batch comes sooner
FIRST_TASKS = 4
PREFETCHED_BLOCKS = 2  # on their way to the training process


@dataclass(frozen=True)
class CpuBudget:
    """What one worker's pipeline may take of the cluster.

    cpus: CPUs for its tasks together; one task more may wait in reserve, or run where CPUs are free.
    object_store: bytes of shared memory, or None for no limit of ours.
    """

    cpus: float
    object_store: float | None = None


class Stream:
    """Reads rows of a table that lies in Ray's object store.

    Two iterators may be read side by side, the next epoch's first batches beside this one's evaluation; they share the
    process that runs the pipelines.

    Args:
        table: reference of a table of readers.TABLE_SCHEMA.
        cpu_budget: this worker's part of the cluster.
        allocate: makes the array for the pictures of a training batch.
        runner: what `start_runner` gave; None: the stream starts its own.
    """

    def __init__(
        self,
        table: ray.ObjectRef,
        cpu_budget: CpuBudget,
        allocate: Allocate = np.empty,
        runner: ActorHandle | None = None,
    ) -> None:
        self.table, self.cpu_budget, self.allocate = table, cpu_budget, allocate
        self._runner = runner or start_runner()

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch]:
        """The batches of `slices`, in order; a batch's rows are domain after domain."""
        rows = [s.rows_DB.ravel() for s in slices]
        positions = [s.positions_DB.ravel() for s in slices]
        return self._batches(rows, positions, encoding, self.allocate)

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch]:
        """The weak views of rows, batch by batch."""
        return self._batches(batches, [np.zeros(len(rows), np.int64) for rows in batches], encoding)

    def _batches(
        self,
        rows: list[np.ndarray],
        positions: list[np.ndarray],
        encoding: Encoding,
        allocate: Allocate = np.empty,
    ) -> Iterator[HostBatch]:
        if not rows:
            return
        sizes = [len(batch) for batch in rows]
        steps = np.repeat(np.arange(len(rows)), sizes)
        blocks = self._blocks(index_table(steps, np.concatenate(rows), np.concatenate(positions)), encoding)
        pending: list[pa.Table] = []
        ready = 0
        for size in sizes:
            while ready < size:
                block = next(blocks)
                pending.append(block)
                ready += block.num_rows
            joined = pa.concat_tables(pending)
            yield collate(joined.slice(0, size), encoding, allocate)
            pending, ready = [joined.slice(size)], ready - size

    def _blocks(self, index: pa.Table, encoding: Encoding) -> Iterator[pa.Table]:
        """The encoded rows of `index`, in order. The pipeline ends with the iterator, read to its end or not."""
        runner = self._runner
        # Ray resolves a reference that is an argument, not one inside a list.
        number = ray.get(runner.start.remote([self.table], index, encoding, self.cpu_budget))
        try:
            coming = deque(runner.next_block.remote(number) for _ in range(PREFETCHED_BLOCKS))
            while (block := ray.get(coming.popleft())) is not None:
                coming.append(runner.next_block.remote(number))
                yield block
        finally:
            runner.end.remote(number)


def start_runner() -> ActorHandle:
    """A PipelineRunner on this node. It ends when the handle is let go."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    runner: ActorHandle = PipelineRunner.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    return runner


@ray.remote(num_cpus=0)
class PipelineRunner:
    """Runs Ray Data pipelines in a process of its own.

    In the training process the thread of Ray Data's scheduler would hold Python's lock most of the time. One actor for
    all epochs: the actor that `Dataset.streaming_split` starts for each of them costs seconds on a machine of few cores.
    """

    def __init__(self) -> None:
        quiet()
        self._numbers = itertools.count()
        self._blocks: dict[int, Iterator[pa.Table]] = {}  # of each pipeline that runs, by number

    def start(self, table: list[ray.ObjectRef], index: pa.Table, encoding: Encoding, budget: CpuBudget) -> int:
        """Begin a pipeline; its number."""
        number = next(self._numbers)
        dataset = make_dataset(table[0], index, encoding, budget)
        blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        self._blocks[number] = iter(blocks)
        return number

    def next_block(self, number: int) -> pa.Table | None:
        """The next encoded rows; None after the last."""
        return next(self._blocks[number], None)

    def running(self) -> int:
        """The number of pipelines that have begun and not ended."""
        return len(self._blocks)

    def end(self, number: int) -> None:
        """Stop the pipeline's tasks and let go of its blocks."""
        self._blocks.pop(number, None)


def make_dataset(table: ray.ObjectRef, index: pa.Table, encoding: Encoding, budget: CpuBudget) -> ray.data.Dataset:
    """The encoded rows of `index`, in order."""
    # A task keeps one core busy: as many tasks as cores, of a whole one each where the budget has whole ones.
    task_cpus = budget.cpus / math.ceil(budget.cpus)
    dataset = ray.data.from_blocks(_task_blocks(index)).map_batches(
        _encode,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_kwargs={"table": table, "encoding": encoding},
        num_cpus=task_cpus,
    )
    options = dataset.context.execution_options
    options.preserve_order = True
    # One task more waits for a CPU: Ray Data starts the next one up to a tenth of a second after another has ended.
    limits = {"cpu": budget.cpus + task_cpus}
    if budget.object_store is not None:
        limits["object_store_memory"] = budget.object_store
    options.resource_limits = options.resource_limits.copy(**limits)
    dataset.context.enable_progress_bars = False
    return dataset


def _task_blocks(index: pa.Table) -> list[pa.Table]:
    """A task's rows each, in order."""
    first = FIRST_TASKS * FIRST_ROWS_PER_TASK
    starts = [*range(0, first, FIRST_ROWS_PER_TASK), *range(first, index.num_rows, ROWS_PER_TASK)]
    ends = [*starts[1:], index.num_rows]
    return [index.slice(start, end - start) for start, end in zip(starts, ends, strict=True) if start < index.num_rows]


def _encode(index: pa.Table, table: ray.ObjectRef, encoding: Encoding) -> pa.Table:
    # Ray Data passes references on as they are. The table is mapped from shared memory, not copied.
    return encode_rows(index, ray.get(table), encoding)


def quiet() -> None:
    """Ray Data reports each of its executions; a run has one per worker and epoch and reports for itself."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
