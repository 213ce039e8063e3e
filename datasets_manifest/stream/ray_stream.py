"""Plan → Ray Data → batches: one ordered pipeline per worker and epoch.

A worker's rows travel as numbers. Tasks anywhere in the cluster look them up in the shared table or its shards, read, decode
and tokenize; the encoded rows come back in the plan's order. A step may span blocks.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets_manifest.stream.cpu_budget import CpuBudget
from datasets_manifest.stream.encode import Allocate, Encoding, HostBatch, collate, encode_rows, index_table
from datasets_manifest.stream.plan import StepSlice

ROWS_PER_TASK = 96  # a block of 96 rows is about 29 MB at 224 pixels
FIRST_ROWS_PER_TASK = 24  # of the first FIRST_TASKS tasks: the first batch comes sooner
FIRST_TASKS = 4
PREFETCHED_BLOCKS = 2  # on their way to the training process
TOLD_AFTER_S = 10.0  # without data
STARVED_AFTER_S = 60.0  # without a CPU for a data task


class DataStalled(TimeoutError):
    """No data have come for as long as the others wait for a worker."""


class _Starved(Exception):
    """The tasks of a pipeline cannot start; `budget` is one with which they can."""

    def __init__(self, budget: CpuBudget) -> None:
        super().__init__()
        self.budget = budget


class Stream:
    """Reads rows of a table that lies in Ray's object store.

    Two iterators may be read side by side, the next epoch's first batches beside this one's evaluation; they share the
    process that runs the pipelines.

    A pipeline whose tasks find no CPU, because a node was lost or others took it, begins again where it was, with smaller
    tasks or such as reserve none: training never waits for a CPU that does not come. Rows do not change by that.

    Args:
        table: reference of a table of readers.TABLE_SCHEMA, or of a ShardedTable.
        cpu_budget: this worker's part of the cluster, or what gives it for each pipeline, by the nodes that are there.
        allocate: makes the array for the pictures of a training batch.
        runner: what `start_runner` gave; None: the stream starts its own.
        tell: is told in words what a batch waits for.
        timeout_s: how long to wait for data before DataStalled is raised.
    """

    def __init__(
        self,
        table: ray.ObjectRef,
        cpu_budget: CpuBudget | Callable[[], CpuBudget],
        allocate: Allocate = np.empty,
        runner: ActorHandle | None = None,
        *,
        tell: Callable[[str], None] = lambda words: None,
        timeout_s: float = math.inf,
    ) -> None:
        self.table, self.cpu_budget, self.allocate = table, cpu_budget, allocate
        self.tell, self.timeout_s = tell, timeout_s
        self._runner = runner or start_runner()
        self._replacing = threading.Lock()  # two iterators may be read by two threads
        self._reserves = True  # whether tasks reserve CPUs

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
        done = 0
        budget = self._budget()
        while done < index.num_rows:
            runner = self._runner
            try:
                for block in self._read(runner, index.slice(done), encoding, budget):
                    done += block.num_rows
                    yield block
            except _Starved as starved:
                budget = starved.budget
                self._replace(runner)
            except RayActorError:
                if runner is self._runner:
                    raise
                budget = self._budget()  # the iterator beside this one found that tasks cannot start

    def _read(self, runner: ActorHandle, index: pa.Table, encoding: Encoding, budget: CpuBudget) -> Iterator[pa.Table]:
        # Ray resolves a reference that is an argument, not one inside a list.
        number = self._get(runner.start.remote([self.table], index, encoding, budget), budget)
        try:
            coming = deque(runner.next_block.remote(number) for _ in range(PREFETCHED_BLOCKS))
            while (block := self._get(coming.popleft(), budget)) is not None:
                coming.append(runner.next_block.remote(number))
                yield block
        finally:
            runner.end.remote(number)

    def _budget(self) -> CpuBudget:
        budget = self.cpu_budget if isinstance(self.cpu_budget, CpuBudget) else self.cpu_budget()
        return budget if self._reserves else budget.without_reservation()

    def _get(self, reference: ray.ObjectRef, budget: CpuBudget) -> Any:
        """The value, once it is there.

        Raises:
            _Starved: the tasks that make it cannot start.
            DataStalled: it has not come within `timeout_s`.
        """
        began = time.monotonic()
        if ray.wait([reference], timeout=min(TOLD_AFTER_S, self.timeout_s))[0]:
            return ray.get(reference)
        now = self._budget()
        self.tell(_what_it_waits_for(budget))
        if now.task_cpus < budget.task_cpus:
            self.tell(f"by the nodes that are there a data task takes {now.task_cpus:.2g} CPUs from now on")
            raise _Starved(now)
        # A task of the same size: once it has run, those of the pipeline have had their CPUs too.
        probe = _do_nothing.options(num_cpus=budget.task_cpus).remote() if budget.task_cpus else None
        while not ray.wait([reference], timeout=1.0)[0]:
            waited = time.monotonic() - began
            if probe is not None and ray.wait([probe], timeout=0)[0]:
                probe = None
            if probe is not None and waited > STARVED_AFTER_S:
                ray.cancel(probe, force=True)
                self.tell("others hold the CPUs: data tasks start without a CPU of their own from now on")
                self._reserves = False
                raise _Starved(budget.without_reservation())
            if waited > self.timeout_s:
                raise DataStalled(f"{_what_it_waits_for(budget)}; given up after {waited:.0f} s (cluster.timeout_s)")
        return ray.get(reference)

    def _replace(self, runner: ActorHandle) -> None:
        """A new process for pipelines: the old one waits for a block that does not come. Its other pipelines move too."""
        with self._replacing:
            if self._runner is runner:
                self._runner = start_runner()
                ray.kill(runner)


def _what_it_waits_for(budget: CpuBudget) -> str:
    free, all_cpus = ray.available_resources().get("CPU", 0.0), ray.cluster_resources().get("CPU", 0.0)
    return (
        f"no data have come for {TOLD_AFTER_S:g} s: a data task takes {budget.task_cpus:.2g} CPUs, "
        f"{free:.2g} of the cluster's {all_cpus:g} are free"
    )


@ray.remote(max_retries=0)
def _do_nothing() -> None:
    pass


def start_runner() -> ActorHandle:
    """A PipelineRunner on this node. It ends when the handle is let go."""
    # Not soft: Ray would start it on any node, whose loss would end a pipeline of workers that go on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
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
    task_cpus = budget.task_cpus
    dataset = ray.data.from_blocks(_task_blocks(index)).map_batches(
        _encode,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_kwargs={"table": table, "encoding": encoding},
        num_cpus=task_cpus,
        concurrency=None if task_cpus else budget.unreserved_tasks,
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
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that there are no bars
