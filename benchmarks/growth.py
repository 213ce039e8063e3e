"""How cost grows with samples, domains, classes, pictures a sample and workers.

    python -m benchmarks.growth [--quick] [--out benchmarks/results/growth.json]

Small encoders, so that what surrounds them shows. A step's rows are those of all domains together, so twice the domains
are twice the rows, and eight pictures a sample are eight times the pictures: the column `method` says by how much the
method itself grows there, and what a sensible implementation must not exceed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.sides import interleaved
from benchmarks.step_parts import Size, make_labels, make_network, make_rows, make_step, recipe_of
from datasets_manifest.stream.plan import DomainPool, EpochPlan
from trainers.compute.device_batches import to_batch
from trainers.m2can.collective import DistributedCollective
from trainers.m2can.pseudo_labels import select, uniform_prior

CPU = torch.device("cpu")
SMALL = Size("tiny", 64, 128, 2, 2000, 8, 64)
SAMPLES = 1_000_000


def step_of(size: Size) -> Callable[[], object]:
    recipe = recipe_of(size, "published")
    step = make_step(make_network(size, recipe), recipe, CPU)
    batch = to_batch(make_rows(size, 2, size.rows), make_labels(size), device=CPU, dtype=torch.float32)
    step(batch)
    return lambda: step(batch)


def step_growth(small: Size, large: Size) -> tuple[float, float]:
    """Seconds of a step of each."""
    found = interleaved({"before": step_of(small), "after": step_of(large)}, small.repeats, CPU)
    return found["before"], found["after"]


def plan_seconds(samples: int) -> float:
    """Of an epoch's selection of pseudo labels and its plan: what one process does for all samples."""
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 3, samples, dtype=np.int32), random.random(samples, dtype=np.float32)
    started = time.perf_counter()
    kept = select(labels, scores, 0.6, uniform_prior(3))
    pools = [DomainPool(np.arange(samples), labels.astype(np.int64))] * 2 + [DomainPool(kept, labels[kept].astype(int))]
    plan = EpochPlan.build(seed=0, epoch=1, pools=pools, samples_per_epoch=samples, batch_size=1024)
    for _ in plan.worker_steps(0, 1):
        pass
    return time.perf_counter() - started


class Counting(DistributedCollective):
    """Counts what this worker hands to the others."""

    calls = 0
    bytes = 0

    def _count(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.bytes += x.numel() * x.element_size()
        return x

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        return super().sum_(self._count(x))

    def gather(self, x_DBK: torch.Tensor, global_batch: int) -> torch.Tensor:
        return super().gather(self._count(x_DBK), global_batch)


def exchanged(rank: int, world: int, store: str, size: Size) -> tuple[int, int]:
    """Exchanges of a step and the bytes this worker gives, without what DistributedDataParallel exchanges."""
    torch.set_num_threads(1)
    recipe = recipe_of(size, "published")
    network = make_network(size, recipe)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    counted = Counting()
    step = make_step(network, recipe, CPU, collective=counted)
    part = replace(size, batch=size.batch // world)
    batch = to_batch(
        make_rows(part, 2, part.rows, seed=rank), make_labels(part, rank), device=CPU, dtype=torch.float32,
        offset=rank * part.batch, global_batch=size.batch,
    )  # fmt: skip
    step(batch)
    before = counted.calls, counted.bytes
    step(batch)
    found = counted.calls - before[0], counted.bytes - before[1]
    dist.destroy_process_group()
    return found


def exchange_of(world: int, size: Size) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(world) as pool:
        return max(pool.starmap(exchanged, [(r, world, f"{folder}/store", size) for r in range(world)], chunksize=1))


def measure(quick: bool = False) -> list[dict[str, Any]]:
    size = replace(SMALL, repeats=1 if quick else 7)
    samples = SAMPLES // 100 if quick else SAMPLES
    rows = []

    def add(what: str, before: float, after: float, unit: str, method: float) -> None:
        rows.append({"what": what, "before": before, "after": after, "unit": unit, "method": method})
        print(line(rows[-1]), flush=True)

    add("samples × 10: selection and plan", plan_seconds(samples), plan_seconds(10 * samples), "s", 10)
    add("domains 3 → 6: step", *step_growth(size, replace(size, sources=5)), "s", 2)
    add("classes 3 → 50: step", *step_growth(size, replace(size, classes=50)), "s", 1)
    add("pictures a sample 1 → 8: step", *step_growth(size, replace(size, pictures=8)), "s", 8)
    two, four = exchange_of(2, size), exchange_of(4, size)
    add("workers 2 → 4: exchanges of a step", two[0], four[0], "", 1)
    add("workers 2 → 4: bytes a worker gives in a step, gradients apart", two[1], four[1], "B", 1)
    return rows


HEAD = "| what grows | before | after | × | of the method itself |\n|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    shown = [f"{row[side]:.3g} {row['unit']}".strip() for side in ("before", "after")]
    return f"| {row['what']} | {shown[0]} | {shown[1]} | {row['after'] / row['before']:.2f} | {row['method']:g} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="whether it runs, not how it grows")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(HEAD)
    rows = measure(arguments.quick)
    if arguments.out:
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
