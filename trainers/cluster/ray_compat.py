"""The private parts of Ray that this package uses, for want of a public call. A new release of Ray may move them."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import ray


def autoscaled_resources() -> dict[str, float]:
    """The most that an autoscaler may bring the cluster to, by resource; empty where there is none. Ray must be running.

    Warns:
        RuntimeWarning: this Ray has no such function, so that only nodes that are there count.
    """
    try:
        from ray._private.state import state

        most = state.get_max_resources_from_cluster_config()
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"Ray {ray.__version__} lacks ray._private.state.state.get_max_resources_from_cluster_config ({error}): "
            "nodes that an autoscaler may add are left out; install the Ray that pyproject.toml names",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    return {name: float(amount) for name, amount in (most or {}).items()}


class RestartObserver(Protocol):
    """What is told of Ray Train's controller, in its process."""

    def worker_resources(self, workers: int, resources: dict[str, float]) -> dict[str, float]:
        """What each of so many workers that are about to be started takes; `resources` is what the driver has set."""

    def on_state(self, state: str, error: BaseException | None, drained: list[str]) -> None:
        """The controller's new state, such as RUNNING, PREEMPTING or RESTARTING, what led to it, and ids of drained nodes."""


def watch_restarts(observer: RestartObserver) -> list[Any]:
    """A callback of Ray Train's controller that hands on to `observer`; none in a Ray that has no such callbacks.

    Warns:
        RuntimeWarning: this Ray has none: workers are started again with the CPUs they had at first.
    """
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
    except ImportError as error:
        warnings.warn(
            f"Ray {ray.__version__} lacks ray.train.v2._internal.execution.callback.ControllerCallback ({error}): "
            "workers that are started again take the CPUs they had at first; install the Ray that pyproject.toml names",
            RuntimeWarning,
            stacklevel=2,
        )
        return []

    class Hand(ControllerCallback):  # travels to the controller by value
        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            resize_decision.resources_per_worker = observer.worker_resources(
                resize_decision.num_workers, resize_decision.resources_per_worker
            )

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            error = getattr(current_state, "training_failed_error", None)
            drain = getattr(current_state, "preemption_info", None) or getattr(error, "preemption_info", None)
            drained = drain.preempted_node_ids if drain is not None else []
            observer.on_state(current_state._state_type.state_name, error, drained)

    return [Hand()]
