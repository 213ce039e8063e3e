"""Rows in shards against one table in memory: plan, look-ups, and what each process holds.

    python -m benchmarks.rows [--rows 100000000] [--read 2000000] [--folder FOLDER] [--out benchmarks/results/rows.json]

Two sources and a target of synthetic records, a short text and a picture's path each, are written shard by shard below FOLDER
and removed at the end; beside them lies a table of MEMORY_ROWS rows in memory. Each number comes from a process of its own: one
that opens the rows as the driver does, one that plans an epoch as a worker does, one that looks rows up as a data task does, in
the plan's order, 96 at a time. Memory is what the process has of its own beyond its imports; labels in shards are counted,
though on a node they lie in shared memory once. `--read`: rows of Parquet files that a manifest names, read both ways.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_manifest.records import large_corpus
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.readers import TABLE_SCHEMA
from datasets_manifest.records.sharded_table import ShardedTable, ShardWriter, labels_of
from datasets_manifest.stream import ray_stream
from datasets_manifest.stream.plan import DomainPool, EpochPlan

MEMORY_ROWS, SAMPLES, BATCH, TASKS = 1_000_000, 1_000_000, 96, 3000
SHARES = {"shop": 0.4, "market": 0.35, "town": 0.25}  # of all rows; the last is the target
WORDS = np.array([f"word{(7919 * n) % 10_007}" for n in range(10_007)])


def batches(domain: str, rows: int) -> Iterator[pa.RecordBatch]:
    """Records of 12 words and one picture."""
    random = np.random.default_rng(len(domain))
    words = [pa.array(WORDS[random.integers(0, len(WORDS), 65_536)]) for _ in range(12)]
    all_texts = pc.binary_join_element_wise(*words, " ")
    for start in range(0, rows, 65_536):
        numbers = np.arange(start, min(start + 65_536, rows))
        number, folder = pa.array(numbers).cast(pa.string()), pa.array(numbers // 1000).cast(pa.string())
        one_each = pa.array(np.arange(len(number) + 1, dtype=np.int32))
        texts = pa.ListArray.from_arrays(one_each, all_texts.take(pa.array(random.permutation(65_536)[: len(number)])))
        path = pc.binary_join_element_wise(f"/data/{domain}", folder, number, "/")
        label = pa.array(random.integers(0, 3, len(number)).astype(np.int32))
        columns = [
            pc.binary_join_element_wise(domain, number, "-"),
            pa.array([domain]).take(pa.array(np.zeros(len(number), np.int32))),
            texts,
            pa.ListArray.from_arrays(one_each, path),
            label,
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=TABLE_SCHEMA)


def write_shards(folder: str, rows: int) -> dict[str, float]:
    started, writer = time.perf_counter(), ShardWriter(folder)
    for domain, share in SHARES.items():
        for batch in batches(domain, round(share * rows)):
            writer.write(batch)
    writer.finish()
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"seconds": time.perf_counter() - started, "bytes_a_row": size / rows}


def table_in_memory(rows: int) -> pa.Table:
    made = [batch for domain, share in SHARES.items() for batch in batches(domain, round(share * rows))]
    return pa.Table.from_batches(made).combine_chunks()


def plan_of(labels: np.ndarray) -> EpochPlan:
    """An epoch of a worker; nothing is known of the target's labels."""
    bounds = np.round(np.cumsum([0, *SHARES.values()]) * len(labels)).astype(int).tolist()
    labels.flags.writeable = False  # as those that are mapped from shared memory
    pools = [DomainPool(range(a, b), labels[a:b]) for a, b in itertools.pairwise(bounds[:-1])]
    pools.append(DomainPool(range(bounds[-2], bounds[-1]), np.broadcast_to(np.int8(-1), bounds[-1] - bounds[-2])))
    return EpochPlan.build(seed=0, epoch=0, pools=pools, samples_per_epoch=SAMPLES, batch_size=BATCH)


def own_mb() -> float:
    pa.default_memory_pool().release_unused()
    return float(psutil.Process().memory_full_info().uss) / 1e6


def open_rows(folder: str | None) -> pa.Table | ShardedTable:
    return ShardedTable.open(folder) if folder else table_in_memory(MEMORY_ROWS)


def driver(folder: str | None) -> dict[str, float]:
    """Opens the rows."""
    before, started = own_mb(), time.perf_counter()
    rows = open_rows(folder)
    return {"seconds": time.perf_counter() - started, "mb": own_mb() - before, "rows": len(rows)}


def worker(folder: str | None) -> dict[str, float]:
    """Plans an epoch by the labels."""
    labels = labels_of(open_rows(folder))
    before, started = own_mb(), time.perf_counter()
    plan = plan_of(labels)
    seconds, planned = time.perf_counter() - started, own_mb() - before
    del plan
    return {"seconds": seconds, "plan_mb": planned, "labels_mb": labels.nbytes / 1e6}


def data_task(folder: str | None) -> dict[str, float]:
    """Looks rows up, task by task."""
    rows = open_rows(folder)
    drawn = [step.rows_DB.ravel() for step in plan_of(labels_of(rows)).worker_steps(0, 1)]
    wanted = np.concatenate(drawn)[: TASKS * ray_stream.ROWS_PER_TASK].reshape(TASKS, -1)
    view, before = rows.select(["texts", "images"]), own_mb()
    seconds = []
    for task in wanted:
        started = time.perf_counter()
        found = view.take(pa.array(task))
        if len(found) != len(task):
            raise RuntimeError("rows were lost")
        seconds.append(time.perf_counter() - started)
    groups = len(np.unique(rows._group_of(wanted[TASKS // 2]))) if isinstance(rows, ShardedTable) else 1
    return {
        "rows_per_s": wanted.size / sum(seconds),
        "first_task_ms": 1000 * seconds[0],
        "slowest_task_ms": 1000 * max(seconds),
        "groups_of_a_task": groups,
        "mb": max(0.0, own_mb() - before),
    }


def read_manifest(folder: str, rows: int, sharded: bool) -> dict[str, float]:
    """Read the Parquet files that manifests name, as a command does before it starts."""
    manifests = [str(Path(folder) / domain / "manifest.json") for domain in SHARES]
    if sharded:
        large_corpus.MOST_ROWS = 0
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is that of now
    before = highest_mb()
    started = time.perf_counter()
    corpus = load_corpus(manifests[:-1], manifests[-1], runs=Path(folder) / "runs" if sharded else None)
    seconds = time.perf_counter() - started
    if len(corpus.table) != rows:
        raise RuntimeError(f"{len(corpus.table)} of {rows} rows were read")
    return {"seconds": seconds, "peak_mb": highest_mb() - before}


def highest_mb() -> float:
    """The most memory that this process had at once."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def write_manifests(folder: str, rows: int) -> int:
    """Ten Parquet files a domain; the number of rows."""
    written = 0
    for domain, share in SHARES.items():
        place = Path(folder) / domain
        place.mkdir(parents=True)
        table = pa.Table.from_batches(batches(domain, round(share * rows)))
        names = np.array(["bad", "middling", "good"])[table["label"].to_numpy()]
        table = pa.table({"id": table["id"], "text": table["texts"], "image": table["images"], "label": names})
        size = -(-len(table) // 10)
        for number in range(10):
            pq.write_table(table.slice(number * size, size), place / f"{number}.parquet")
        records = {"records": [f"{number}.parquet" for number in range(10)], "allow_absolute": True}
        content = {"name": domain, "classes": ["bad", "middling", "good"], "splits": {"train": records}}
        (place / "manifest.json").write_text(json.dumps(content))
        written += len(table)
    return written


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


HEAD = (
    "| rows | where | plan of an epoch, s | plan, MB | labels, MB | opened by the driver, MB | rows/s of a data task | "
    "its first 96 rows, ms | its memory, MB |\n|---|---|---|---|---|---|---|---|---|"
)


def line(where: str, row: dict[str, Any]) -> str:
    task, plan = row["task"], row["worker"]
    return (
        f"| {row['driver']['rows']:,} | {where} | {plan['seconds']:.2f} | {plan['plan_mb']:.0f} | {plan['labels_mb']:.0f} | "
        f"{row['driver']['mb']:.0f} | {task['rows_per_s']:,.0f} | {task['first_task_ms']:.0f} | {task['mb']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--read", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rows-", dir=arguments.folder))
    found: dict[str, Any] = {}
    try:
        shards = folder / "shards"
        shards.mkdir()
        found["write"] = alone(write_shards, str(shards), arguments.rows)
        print(f"{arguments.rows:,} rows written: {found['write']}", flush=True)
        print(HEAD)
        for where, place in (("shards", str(shards)), ("memory", None)):
            found[where] = {
                "driver": alone(driver, place),
                "worker": alone(worker, place),
                "task": alone(data_task, place),
            }
            print(line(where, found[where]), flush=True)
        rows = write_manifests(str(folder), arguments.read)
        found["read"] = {"rows": rows}
        for where in ("memory", "shards"):
            found["read"][where] = alone(read_manifest, str(folder), rows, where == "shards")
            print(where, found["read"][where], flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
