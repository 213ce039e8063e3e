"""Many workers' pipelines at once: first batch, steady rate, memory, and the end of an epoch.

    python -m benchmarks.pipelines [--pipelines 1 4 16] [--out benchmarks/results/pipelines.json]

A simulated cluster on this machine: NODES of NODE_CPUS made-up CPUs each, whose processes share the few real cores. Each
worker is an actor with a stream and a PipelineRunner of its own, as in training, that reads two epochs of small pictures and
does nothing else; all workers begin an epoch together. The rows of an epoch are the same for any number of pipelines.
The real cores bound rate and start: what the numbers show is whether many pipelines starve or hang one another, and what each
costs in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks.fault_services import set_token
from benchmarks.streaming import encoding_of, table_of, write_pictures
from datasets_manifest.stream.cpu_budget import CpuBudget, half_of, present_nodes, share_of
from datasets_manifest.stream.encode import Encoding
from datasets_manifest.stream.images import PictureViews
from datasets_manifest.stream.plan import DomainPool, EpochPlan, StepSlice
from datasets_manifest.stream.ray_stream import Stream, quiet
from trainers.cluster.local_cluster import kept_processes

NODES, NODE_CPUS = 4, 2
STORE_BYTES = 512 * 2**20  # of each node
ROWS, ROWS_OF_A_WORKER = 12_288, 32  # of an epoch, of a step


@contextmanager
def simulated_cluster() -> Iterator[None]:
    """NODES nodes, this process connected to them."""
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    patience = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}
    node = {"num_cpus": NODE_CPUS, "object_store_memory": STORE_BYTES}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": patience}
    )
    reset_ray_address()  # it offers itself to every `ray.init` of this machine
    try:
        for _ in range(NODES - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        yield
    finally:
        processes = psutil.Process().children(recursive=True)
        ray.shutdown()
        cluster.shutdown()
        psutil.wait_procs(processes, timeout=60)


@ray.remote(scheduling_strategy="SPREAD")
class Worker:
    """Reads its part of each epoch, as a training worker would."""

    def __init__(self, workers: int, cpus: float) -> None:
        quiet()
        self.workers, self.cpus = workers, cpus
        self.told: list[str] = []
        self.stream: Stream | None = None

    def here(self) -> None:
        """The process is there."""

    def read(self, table: list[ray.ObjectRef], slices: list[StepSlice], encoding: Encoding) -> list[float]:
        """The times at which the batches came."""

        def budget() -> CpuBudget:
            return share_of(present_nodes(), self.cpus, self.workers)

        if self.stream is None:
            self.stream = Stream(table[0], budget, tell=self.told.append, timeout_s=300.0)
        times = []
        for batch, slice_ in zip(self.stream.train(slices, encoding), slices, strict=True):
            if batch.rows.tolist() != slice_.rows_DB.ravel().tolist():
                raise RuntimeError("a batch has other rows than the plan says")
            times.append(time.time())
        return times

    def words(self) -> list[str]:
        """What the stream told while it waited."""
        return self.told


class Peaks:
    """What the pipelines' processes and the object stores take at most, in MB, while the block runs.

    runner: private memory of a PipelineRunner, mean of all at their fullest moment. processes: that of all of Ray's worker
    processes together. store: of the object stores together. cpu_s: of each worker process, by its id, what it is and its
    processor time.
    """

    def __enter__(self) -> Peaks:
        self.runner = self.processes = self.store = 0.0
        self.cpu_s: dict[int, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            runners, everything = [], 0.0
            for process in psutil.Process().children(recursive=True):
                try:
                    name = (process.cmdline() or [""])[0]
                    if name.startswith("ray::"):
                        private = process.memory_full_info().uss / 1e6
                        everything += private
                        times = process.cpu_times()
                        kind = next((kind for kind in ("PipelineRunner", "Worker") if kind in name), "tasks")
                        self.cpu_s[process.pid] = kind, times.user + times.system
                        if name.startswith("ray::PipelineRunner"):
                            runners.append(private)
                except psutil.Error:
                    continue  # it ended meanwhile
            if runners:
                self.runner = max(self.runner, statistics.mean(runners))
            self.processes = max(self.processes, everything)
            there, free = ray.cluster_resources(), ray.available_resources()
            used = there.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
            self.store = max(self.store, used / 1e6)


def measure(pipelines: int, paths: list[str], rows: int) -> dict[str, Any]:
    """Two epochs of so many pipelines."""
    table, encoding = table_of(paths, rows), encoding_of(PictureViews(resize=54, crop=48))
    pool = DomainPool(range(rows), np.zeros(rows, np.int64))
    batch = ROWS_OF_A_WORKER * pipelines
    with simulated_cluster():
        reference = ray.put(table)
        cpus = half_of(NODES * NODE_CPUS, pipelines)  # of each worker, as training gives them
        started = Worker.options(num_cpus=cpus)  # type: ignore[attr-defined]
        workers = [started.remote(pipelines, cpus) for _ in range(pipelines)]
        ray.get([worker.here.remote() for worker in workers])
        began, epochs = [], []
        with Peaks() as peaks:
            for epoch in range(2):
                plan = EpochPlan.build(seed=0, epoch=epoch, pools=[pool], samples_per_epoch=rows, batch_size=batch)
                parts = [ray.put(list(plan.worker_steps(rank, pipelines))) for rank in range(pipelines)]
                began.append(time.time())
                epochs.append(
                    ray.get(
                        [w.read.remote([reference], part, encoding) for w, part in zip(workers, parts, strict=True)]
                    )
                )
        told = sorted({words for worker in workers for words in ray.get(worker.words.remote())})
    stays = "RAY_num_workers_soft_limit" in os.environ
    return {
        "pipelines": pipelines,
        "stays": stays,
        **figures(began, epochs, rows),
        **_memory(peaks, table.nbytes),
        "told": told,
    }


def figures(began: list[float], epochs: list[list[list[float]]], rows: int) -> dict[str, float]:
    """Of the times at which each worker's batches came, in two epochs that began at `began`."""
    first, second = epochs
    last = max(times[-1] for times in first)
    all_there = max(times[0] for times in second)
    gaps = [after - before for times in second for before, after in itertools.pairwise(times)]
    seconds = max(times[-1] for times in second) - all_there
    after_first = sum(sum(t > all_there for t in times) for times in second) / sum(map(len, second))
    return {
        "first_batch_s": max(times[0] for times in first) - began[0],
        "rows_per_s": rows * after_first / seconds,
        "longest_wait_s": max(gaps),
        "epoch_end_s": all_there - last,
    }


def _memory(peaks: Peaks, table_bytes: int) -> dict[str, float]:
    by_kind = {kind: [s for k, s in peaks.cpu_s.values() if k == kind] for kind in ("PipelineRunner", "tasks")}
    return {
        "runner_cpu_s": sum(by_kind["PipelineRunner"]),
        "tasks_cpu_s": sum(by_kind["tasks"]),
        "task_processes": len(by_kind["tasks"]),
        "runner_mb": peaks.runner,
        "processes_mb": peaks.processes,
        "store_mb": peaks.store,
        "table_mb": table_bytes / 1e6,
    }


HEAD = (
    "| pipelines | first batch of all, s | rows/s together | longest wait for a batch, s | epoch's end, s | task processes | "
    "a PipelineRunner, MB | all worker processes, MB | object stores, MB |\n|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    name = f"{row['pipelines']}" if row["stays"] else f"{row['pipelines']}, processes end"
    rates = f"{row['first_batch_s']:.1f} | {row['rows_per_s']:,.0f} | {row['longest_wait_s']:.1f} | {row['epoch_end_s']:.1f}"
    memory = f"{row['runner_mb']:.0f} | {row['processes_mb']:,.0f} | {row['store_mb']:.0f}"
    return f"| {name} | {rates} | {row['task_processes']} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=ROWS, help="of an epoch, all pipelines together")
    parser.add_argument("--ends-idle", action="store_true", help="processes beyond a node's CPUs end, as Ray has it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_token()  # Ray reads it when it is imported: each measurement has a process of its own
    if not arguments.ends_idle:
        os.environ.update(kept_processes(NODE_CPUS))
    spawn = multiprocessing.get_context("spawn")
    found = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder, spawn.Pool(1, maxtasksperchild=1) as alone:
        paths = write_pictures(Path(folder), 500, (128, 96))
        for pipelines in arguments.pipelines:
            found.append(alone.apply(measure, (pipelines, paths, arguments.rows)))
            print(line(found[-1]), flush=True)
            for words in found[-1]["told"]:
                print(f"  told: {words}", flush=True)
    machine = {"cpus": os.cpu_count(), "nodes": NODES, "node_cpus": NODE_CPUS, "rows": arguments.rows}
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
