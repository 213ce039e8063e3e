"""The private parts of Ray are where this release of Ray has them, and a Ray without them is told by name."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller import state as states
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from trainers.cluster import ray_compat


def test_this_ray_tells_what_an_autoscaler_may_add(ray_cluster: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fails where this release of Ray has moved the function
        assert ray_compat.autoscaled_resources() == {}


def test_a_ray_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import state

    monkeypatch.delattr(type(state), "get_max_resources_from_cluster_config")
    with pytest.warns(RuntimeWarning, match=r"Ray \d+\.\d+.*get_max_resources_from_cluster_config"):
        assert ray_compat.autoscaled_resources() == {}


class Observer:
    def __init__(self) -> None:
        self.states: list[tuple[str, BaseException | None, list[str]]] = []

    def worker_resources(self, workers: int, resources: dict[str, float]) -> dict[str, float]:
        return resources | {"CPU": workers / 8}

    def on_state(self, state: str, error: BaseException | None, drained: list[str]) -> None:
        self.states.append((state, error, drained))


def test_the_controller_asks_before_workers_start_and_tells_its_states() -> None:
    observer = Observer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fails where this release of Ray has moved what it needs
        (callback,) = ray_compat.watch_restarts(observer)
    decision = ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1.0, "GPU": 1.0})
    callback.before_controller_execute_resize_decision(decision)
    assert decision.resources_per_worker == {"CPU": 0.25, "GPU": 1.0}
    failed: Any = RuntimeError("lost")
    callback.after_controller_state_update(states.RunningState(), states.RestartingState(failed))
    callback.after_controller_state_update(states.RestartingState(failed), states.RunningState())
    drain = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node-2": [1]})
    callback.after_controller_state_update(states.RunningState(), states.PreemptingState(drain, 0.0))
    error = PreemptionError(preemption_info=drain, drain_timed_out=True)
    callback.after_controller_state_update(states.RunningState(), states.RestartingState(error))
    assert observer.states == [
        ("RESTARTING", failed, []),
        ("RUNNING", None, []),
        ("PREEMPTING", None, ["node-2"]),
        ("RESTARTING", error, ["node-2"]),
    ]


def test_a_ray_without_callbacks_of_the_controller_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.callback", SimpleNamespace())
    with pytest.warns(RuntimeWarning, match=r"Ray \d+\.\d+.*ControllerCallback"):
        assert ray_compat.watch_restarts(Observer()) == []
