"""Which `train.batch_size` a GPU takes, and how fast each is: a part of `m2can train --dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from trainers.loop.loop import Loop
from trainers.worker.slices import fullest, most_of_all

SIZES = (8, 16, 32, 64, 128)
STEPS = 4  # of each size: the first has the samples with most pictures and warms up
SPARE = 0.1  # of the memory that is free, left for texts longer than those that were tried


@dataclass(frozen=True)
class Tried:
    """A batch size that was tried.

    size: samples of each domain in a step. rows_per_s: of all domains, without waiting for data. memory: the most bytes
    that a worker's GPU held.
    """

    size: int
    rows_per_s: float
    memory: float


class GpuMemory:
    """This process's memory on its GPU, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        """The peak counts from now on."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def held(self) -> float:
        """Now: after a step weights, gradients and the optimizers' state."""
        return float(torch.cuda.memory_allocated(self.device))

    def peak(self) -> float:
        torch.cuda.synchronize(self.device)
        return float(torch.cuda.max_memory_allocated(self.device))

    def available(self) -> float:
        """What is free, and what this process holds already."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return float(free + torch.cuda.memory_reserved(self.device))


def find_batch_sizes(loop: Loop, pictures: np.ndarray, memory: GpuMemory) -> tuple[list[Tried], int | None]:
    """Take a few steps with each of SIZES that fits. All workers call it together and find the same.

    Steps of the recipe's own batch size were taken before.

    Args:
        pictures: of each row of the table.

    Returns:
        those that were tried, and the largest that fits; None if no step was tried.
    """
    known = most_of_all(loop, {"held": memory.held(), "peak": memory.peak(), "less": -memory.available()})
    own = loop.recipe.train.batch_size
    sizes = [size for size in SIZES if size >= loop.world_size]
    points = [(0, known["held"]), (own, known["peak"])]
    return search(sizes, -known["less"] * (1 - SPARE), points, lambda size: _try(loop, pictures, size, memory))


def search(
    sizes: list[int], limit: float, points: list[tuple[int, float]], measure: Callable[[int], Tried]
) -> tuple[list[Tried], int | None]:
    """Measure sizes, smallest first, as long as the memory of the next one stays below the limit.

    No size is tried that would not fit, by those before: where one of several workers runs out of memory, the others
    wait for it.

    Args:
        limit: bytes.
        points: sizes and their bytes that are known already, of which the first is that of no sample.
    """
    tried: list[Tried] = []
    for size in sizes:
        if _largest(points, limit) < size:
            break
        tried.append(measure(size))
        points = [points[0], *((one.size, one.memory) for one in tried)]
    return tried, _largest(points, limit) if tried else None


def to_take(tried: list[Tried]) -> Tried:
    """The smallest with nine tenths of the best speed: a larger one makes fewer steps of the same rows for little."""
    best = max(one.rows_per_s for one in tried)
    return next(one for one in tried if one.rows_per_s >= 0.9 * best)


def rate_factor(size: int, before: int, optimizer: str) -> float:
    """By what the rates are multiplied when the batch grows from `before` to `size`.

    The square root for Adam, AdamW and Adadelta (Malladi et al., NeurIPS 2022, arXiv:2205.10287), linear for SGD (Goyal
    et al., 2017, arXiv:1706.02677).
    """
    return size / before if optimizer == "sgd" else math.sqrt(size / before)


def _largest(points: list[tuple[int, float]], limit: float) -> int:
    """Memory grows by the same bytes with each sample, as between the last two points."""
    (size_0, bytes_0), (size_1, bytes_1) = points[-2:]
    slope = max((bytes_1 - bytes_0) / (size_1 - size_0), 1.0)
    return max(0, math.floor(size_1 + (limit - bytes_1) / slope))


def _try(loop: Loop, pictures: np.ndarray, size: int, memory: GpuMemory) -> Tried:
    plan = loop.batches.plan(loop.epoch, samples=STEPS * size, batch_size=size)
    slices = [plan.worker_step(number, loop.rank, loop.world_size) for number in range(STEPS)]
    slices[0] = fullest(slices[0], plan, pictures)
    with loop.batches.train(slices) as feed:
        batches = [batch for _, batch in feed]
    memory.start()
    loop.run_step(slices[0], batches[0])
    loop.check()
    started = time.perf_counter()
    for slice_, batch in zip(slices[1:], batches[1:], strict=True):
        loop.run_step(slice_, batch)
    loop.check()
    seconds = time.perf_counter() - started
    found = most_of_all(loop, {"seconds": seconds, "memory": memory.peak()})
    rows = plan.num_domains * size * (STEPS - 1)
    return Tried(size, rows / found["seconds"], found["memory"])
