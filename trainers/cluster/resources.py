"""What the workers take of a cluster: half its CPUs. The other half prepares their data."""

from __future__ import annotations

import ray
from ray.train import ScalingConfig

from datasets_manifest.errors import InputError
from datasets_manifest.stream.cpu_budget import half_of
from trainers.cluster.ray_compat import autoscaled_resources
from trainers.recipe import Recipe

RESIZE_INTERVAL_S = 60.0  # elastic workers: how often to look whether the cluster has grown or shrunk


def most_resources() -> dict[str, float]:
    """What the cluster has or, if that is more, may come to have."""
    now, later = ray.cluster_resources(), autoscaled_resources()
    return {name: max(now.get(name, 0.0), later.get(name, 0.0)) for name in now | later}


def worker_resources(recipe: Recipe, part: float = 1.0) -> ScalingConfig:
    """Half of this part of the cluster's CPUs trains, unless the recipe says otherwise.

    Raises:
        InputError: the cluster has too little.
    """
    total = most_resources()
    cpus, gpus, workers = part * total.get("CPU", 1.0), total.get("GPU", 0.0), recipe.cluster.most_workers
    use_gpu = recipe.cluster.device == "cuda" or (recipe.cluster.device == "auto" and gpus >= workers)
    if use_gpu and gpus < workers:
        raise InputError(
            f"each worker takes a GPU and the cluster has {gpus:g}",
            field="cluster.workers",
            value=workers,
            wanted=f"at most {gpus:g}" if gpus else "cluster.device=cpu, or a cluster with GPUs",
        )
    each = recipe.cluster.cpus_per_worker or half_of(cpus, workers)
    if each * workers >= cpus:
        raise InputError(
            f"{workers} workers take all of the {cpus:g} CPUs there are for the run and none is left to prepare data",
            field="cluster.cpus_per_worker",
            value=each,
            wanted=f"less than {cpus / workers:g}",
        )
    return ScalingConfig(
        num_workers=recipe.cluster.workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": each, "GPU": int(use_gpu)},
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )
