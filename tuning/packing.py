"""How many trials run side by side, what each of them takes, and whether it trains in Tune's own process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainers.recipe import Recipe

DRIVER_CPUS = 0.01  # of a process that only drives a trial; the workers do the work
TRIALS_PER_GPU = 4  # on features: a network from the projections on leaves most of a GPU idle


@dataclass(frozen=True)
class Packing:
    """How trials are packed.

    concurrent: trials at once. cpus, gpus: that Ray holds for a trial's process. device: where that process trains; None: it
    starts workers of Ray Train's.
    """

    concurrent: int
    cpus: float = DRIVER_CPUS
    gpus: float = 0.0
    device: str | None = None


def pack(recipe: Recipe, resources: Mapping[str, float], most: int | None = None) -> Packing:
    """By GPUs if the cluster has enough for a trial, else two CPUs a worker, one of which prepares data.

    On features nothing is prepared: a trial of one worker trains in its own process, with one CPU, or with a part of a GPU.

    Args:
        resources: of the cluster.
        most: trials at once, in the place of as many as the cluster holds.
    """
    workers, gpus, cpus = recipe.cluster.most_workers, resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    on_gpus = recipe.cluster.device != "cpu" and gpus >= workers
    on_features = recipe.encoders.features is not None
    each = recipe.cluster.cpus_per_worker or 1.0
    if not on_features or recipe.cluster.workers != 1:
        held = int(gpus // workers) if on_gpus else int(cpus // (each * workers * (1 if on_features else 2)))
        return Packing(most or max(1, held))
    if not on_gpus:
        concurrent = most or max(1, int(cpus // each))
        return Packing(concurrent, min(each, cpus / concurrent), 0.0, "cpu")
    gpus = float(int(gpus))
    concurrent = most or int(gpus * max(1, min(TRIALS_PER_GPU, cpus // (each * gpus))))
    return Packing(concurrent, min(each, cpus / concurrent), 1 / math.ceil(concurrent / gpus), "cuda")
