"""How the CPUs of the nodes that are there are divided: half for the workers, half for the pipelines of their data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import ray

_FINEST = 1e-4  # Ray counts CPUs in such parts


@dataclass(frozen=True)
class CpuBudget:
    """CPUs and memory of one worker's pipeline.

    cpus: for its tasks together; one task more may wait in reserve, or run where CPUs are free.
    object_store: bytes of shared memory, or None for no limit of ours.
    most_task_cpus: that one task may take. 0: tasks reserve no CPU, as many run as `cpus` has whole ones, at least one.
    """

    cpus: float
    object_store: float | None = None
    most_task_cpus: float = 1.0

    @property
    def task_cpus(self) -> float:
        """A task keeps one core busy: as many tasks as cores, of a whole one each where the budget has whole ones."""
        return min(self.most_task_cpus, self.cpus / math.ceil(self.cpus)) if self.cpus else 0.0

    @property
    def unreserved_tasks(self) -> int:
        """How many tasks run at once where they reserve no CPU."""
        return max(1, int(self.cpus))

    def without_reservation(self) -> CpuBudget:
        """The same for tasks that need no free CPU to start."""
        return replace(self, most_task_cpus=0.0)


def share_of(nodes: Sequence[Mapping[str, float]], worker_cpus: float, workers: int, part: float = 1.0) -> CpuBudget:
    """The budget of one of `workers`, beside whom nothing else runs on these nodes.

    However the workers lie on the nodes, one node has at least the mean of what is free: a task that takes no more than that
    always fits somewhere.

    Args:
        nodes: the resources of each.
        worker_cpus: that each worker holds.
        part: of the nodes' CPUs and memory that the run may take, 0 to 1.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes]
    free = max(0.0, part * sum(cpus) - worker_cpus * workers)
    mean = free / max(1, sum(1 for own in cpus if own > 0))
    memory = part * sum(node.get("object_store_memory", 0.0) for node in nodes)
    return CpuBudget(
        cpus=free / workers,
        object_store=memory / 2 / workers if memory else None,
        most_task_cpus=min(1.0, rounded_down(mean)),
    )


def half_of(cpus: float, workers: int) -> float:
    """CPUs of each worker when all of them have half of `cpus`, at most one each."""
    return min(1.0, max(_FINEST, rounded_down(cpus / 2 / workers)))


def fitting_cpus(nodes: Sequence[Mapping[str, float]], workers: int, part: float, gpus_each: float) -> float:
    """CPUs of each worker when they start on these nodes: half of what is there, less where the GPUs' nodes have few."""
    each = half_of(part * sum(node.get("CPU", 0.0) for node in nodes), workers)

    def places(node: Mapping[str, float]) -> int:
        on_cpus = int(node.get("CPU", 0.0) / each + 1e-6)
        return min(on_cpus, int(node.get("GPU", 0.0) / gpus_each)) if gpus_each else on_cpus

    while each > 0.01 and sum(map(places, nodes)) < workers:
        each = rounded_down(each / 2)
    return each


def rounded_down(cpus: float) -> float:
    """To the parts that Ray counts in, so that the sum of many does not come to more than there is."""
    return math.floor(cpus / _FINEST + 1e-6) * _FINEST


def present_nodes(without: Set[str] = frozenset()) -> list[dict[str, float]]:
    """The resources of each node that is alive, but for those of these ids. Ray must be running."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without]
