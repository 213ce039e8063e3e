"""What the controller does when workers are started, the first time and again: their CPUs by the nodes that are there, and
a line that says why."""

from __future__ import annotations

from typing import Any

import ray

from datasets_manifest.stream.cpu_budget import fitting_cpus, present_nodes
from trainers.cluster.ray_compat import autoscaled_resources


class Restarts:
    """A trainers.cluster.ray_compat.RestartObserver.

    Args:
        monitor: handle of a Monitor; gets a message `restart` each time workers are started again, `running` once they run,
            `drain` when a checkpoint is wanted.
        part: of the cluster's CPUs that the run may take; None: workers always take what the driver has set.
        most: how often workers are started again; -1: without end.
    """

    def __init__(self, monitor: Any, part: float | None, most: int) -> None:
        self.monitor, self.part, self.most = monitor, part, most
        self._attempts = 0
        self._drained: set[str] = set()  # ids of nodes on which nothing starts any more
        self._nodes: dict[str, str] = {}  # id → name, of those that were alive when the workers were started

    def worker_resources(self, workers: int, resources: dict[str, float]) -> dict[str, float]:
        """CPUs by the nodes that are there now; an autoscaler brings those that the driver counted on."""
        self._nodes = _alive()
        if self.part is None or autoscaled_resources():
            return resources
        nodes = present_nodes(without=self._drained)
        return resources | {"CPU": fitting_cpus(nodes, workers, self.part, resources.get("GPU", 0.0))}

    def on_state(self, state: str, error: BaseException | None, drained: list[str]) -> None:
        """Tell of nodes that are drained, whose workers have time for a checkpoint, and why workers are started again."""
        new = [self._nodes.get(node, node[:12]) for node in drained if node not in self._drained]
        self._drained |= set(drained)
        if new:
            words = f"node {', '.join(new)} is drained: the workers write a checkpoint"
            self.monitor.post.remote("drain", words)
        if state == "RUNNING":
            self.monitor.post.remote("running", None)
        if state == "RESTARTING" and error is not None:
            self.monitor.post.remote("restart", self._restart(error, drained))

    def _restart(self, error: BaseException, drained: list[str]) -> tuple[str, str]:
        """Why, and the number of the attempt; Ray does not count the loss of a node that was drained."""
        there = _alive()
        drained = drained or [node for node in self._nodes if node in self._drained and node not in there]
        if drained:
            return f"node {', '.join(self._nodes.get(node, node[:12]) for node in drained)} drained", ""
        self._attempts += 1
        most = f" of {self.most}" if self.most >= 0 else ""
        return self._why(error), f", attempt {self._attempts}{most}"

    def _why(self, error: BaseException) -> str:
        there = _alive()
        lost = [name for node, name in self._nodes.items() if node not in there]
        if lost:
            return f"node {', '.join(lost)} lost"
        failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
        if not failures:
            return type(error).__name__
        rank, first = min(failures.items())
        return f"worker {rank} failed ({_reason(first)})"


def _reason(error: BaseException) -> str:
    """The cause in a line: Ray's errors carry the worker's traceback, whose last line says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _alive() -> dict[str, str]:
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"]
    }
