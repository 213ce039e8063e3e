"""Selection of pseudo labels among many target samples: time and memory.

    python -m benchmarks.refinement [--rows 10000000] [--out benchmarks/results/refinement.json]

Each measurement runs in processes of its own, on synthetic scores: `select` alone, and the exchange of the scores
between two workers (gloo) with what a worker keeps of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainers.loop.scoring import COLUMNS, gather_columns
from trainers.m2can.collective import DistributedCollective
from trainers.m2can.pseudo_labels import select, uniform_prior

CLASSES, RATE, WORKERS = 3, 0.6, 2
_CONTEXT = multiprocessing.get_context("spawn")


def peak_mb() -> float:
    """Of this process since its program began; getrusage counts what ran in the process before that too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measure_select(rows: int, _: int, __: str) -> dict[str, float]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, CLASSES, rows, dtype=np.int32)
    scores = generator.random(rows, dtype=np.float32)
    before, started = peak_mb(), time.perf_counter()
    kept = select(labels, scores, RATE, uniform_prior(CLASSES))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mb": peak_mb() - before, "kept": len(kept)}


def measure_gather(rows: int, rank: int, store: str) -> dict[str, float]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    generator = torch.Generator().manual_seed(rank)
    own = rows // WORKERS + (rank < rows % WORKERS)
    columns = {name: [torch.rand(own, generator=generator)] for name in COLUMNS}
    columns["label"] = [torch.randint(CLASSES, (own,), generator=generator, dtype=torch.int32)]
    before, started = peak_mb(), time.perf_counter()
    with torch.inference_mode():
        everyone = gather_columns(
            columns, rows, DistributedCollective(), device=torch.device("cpu"), dtype=torch.float32
        )
    seconds = time.perf_counter() - started
    kept = sum(column.base.nbytes if column.base is not None else column.nbytes for column in everyone.values())
    found = {"seconds": seconds, "mb": peak_mb() - before, "bytes_a_row": kept / rows}
    dist.destroy_process_group()
    return found


def run(measure: Callable[[int, int, str], dict[str, float]], rows: int, processes: int) -> dict[str, float]:
    """The measurement in fresh processes; the largest of each number."""
    with tempfile.TemporaryDirectory() as folder, _CONTEXT.Pool(processes) as pool:
        store = str(Path(folder) / "store")
        found = pool.starmap(measure, [(rows, rank, store) for rank in range(processes)], chunksize=1)
    return {name: max(each[name] for each in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"rows": arguments.rows, "classes": CLASSES, "rate": RATE, "workers": WORKERS}
    content["select"] = run(measure_select, arguments.rows, 1)
    content["gather"] = run(measure_gather, arguments.rows, WORKERS)
    print(json.dumps(content, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
