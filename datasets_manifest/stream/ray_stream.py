"""Plan → Ray Data → batches: one ordered pipeline per worker and epoch.

A worker's rows travel as numbers. Tasks anywhere in the cluster look them up in the shared table, read, decode and
tokenize; the encoded rows come back in the plan's order. A step may span blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from datasets_manifest.heap import TASK_KEEPS, keep_freed_memory
from datasets_manifest.stream.encode import Encoding, HostBatch, collate, encode_rows, index_table
from datasets_manifest.stream.plan import StepSlice

SCHEDULER_PAUSE_S = 0.03
ROWS_PER_TASK = 96  # enough to bury a task's overhead and the loop's pause; at 224 pixels a block is about 29 MB
FIRST_ROWS_PER_TASK = 24  # of the first FIRST_TASKS tasks: the first batch comes sooner
FIRST_TASKS = 4
LOWEST_PRIORITY = 19  # of setpriority(2)


@dataclass(frozen=True)
class CpuBudget:
    """What one worker's pipeline may take of the cluster.

    cpus: CPUs for its tasks together; one task more may wait in reserve, or run where CPUs are free.
    object_store: bytes of shared memory, or None for no limit of ours.
    """

    cpus: float
    object_store: float | None = None


@dataclass(frozen=True)
class Stream:
    """Reads rows of a table that lies in Ray's object store.

    Args:
        table: reference of a table of readers.TABLE_SCHEMA.
        share: this worker's part of the cluster.
    """

    table: ray.ObjectRef
    share: CpuBudget

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch]:
        """The batches of `slices`, in order; a batch's rows are domain after domain."""
        rows = [s.rows_DB.ravel() for s in slices]
        positions = [s.positions_DB.ravel() for s in slices]
        return self._run(rows, positions, encoding)

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch]:
        """The weak views of rows, batch by batch."""
        return self._run(batches, [np.zeros(len(rows), np.int64) for rows in batches], encoding)

    def _run(self, rows: list[np.ndarray], positions: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch]:
        if not rows:
            return
        sizes = [len(batch) for batch in rows]
        steps = np.repeat(np.arange(len(rows)), sizes)
        index = index_table(steps, np.concatenate(rows), np.concatenate(positions))
        pending: list[pa.Table] = []
        ready = 0
        dataset = self._dataset(index, encoding)
        # Ray Data's thread holds one block more in any case; with more to prefetch it would give out the first only when
        # those after it are ready too.
        blocks = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        for size in sizes:
            while ready < size:
                block = next(blocks)
                pending.append(block)
                ready += block.num_rows
            joined = pa.concat_tables(pending)
            yield collate(joined.slice(0, size), encoding.pictures.crop, encoding.vocabulary.pad_id)
            pending, ready = [joined.slice(size)], ready - size

    def _dataset(self, index: pa.Table, encoding: Encoding) -> Any:
        task_cpus = min(0.5, self.share.cpus)
        dataset = ray.data.from_blocks(_task_blocks(index)).map_batches(
            _encode,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_kwargs={"table": self.table, "encoding": encoding},
            num_cpus=task_cpus,
        )
        options = dataset.context.execution_options
        options.preserve_order = True
        # One task more waits for a CPU: Ray Data starts the next one up to a tenth of a second after another has ended.
        limits = {"cpu": self.share.cpus + task_cpus}
        if self.share.object_store is not None:
            limits["object_store_memory"] = self.share.object_store
        options.resource_limits = options.resource_limits.copy(**limits)
        dataset.context.enable_progress_bars = False
        dataset.context.custom_execution_callback_classes = [_Pace]
        return dataset


class _Pace(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its rounds, and begin at full width.

    The loop runs in a thread of the training process. While tasks wait for the consumer it turns without a pause (Ray
    2.60), and took the interpreter's lock four fifths of the time: steps of small networks became five times slower.

    It asks for the cluster's resources before anybody can answer and keeps that nothing for a second, in which it runs
    one task at a time: it is made to ask again.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULER_PAUSE_S)
        with contextlib.suppress(AttributeError):  # of another Ray
            resources = executor._resource_manager
            if not resources.get_global_limits().cpu:
                resources._global_limits_last_update_time = 0.0


def _task_blocks(index: pa.Table) -> list[pa.Table]:
    """A task's rows each, in order."""
    first = FIRST_TASKS * FIRST_ROWS_PER_TASK
    starts = [*range(0, first, FIRST_ROWS_PER_TASK), *range(first, index.num_rows, ROWS_PER_TASK)]
    ends = [*starts[1:], index.num_rows]
    return [index.slice(start, end - start) for start, end in zip(starts, ends, strict=True) if start < index.num_rows]


def _encode(index: pa.Table, table: ray.ObjectRef, encoding: Encoding) -> pa.Table:
    keep_freed_memory(TASK_KEEPS)
    _give_way()
    # Ray Data passes references on as they are. The table is mapped from shared memory, not copied.
    return encode_rows(index, ray.get(table), encoding)


def _give_way() -> None:
    """Let training go first: it is what the batches are for, and it waits once they are short."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)


def quiet() -> None:
    """Ray Data reports each of its executions; a run has one per worker and epoch and reports for itself."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
