"""Workers that are started again take the CPUs of the nodes that are left, and a line says why they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trainers.cluster import restarts
from trainers.cluster.monitor import Listener, Monitor
from trainers.cluster.restarts import Restarts
from trainers.m2can.collective import Collective
from trainers.worker import reports
from trainers.worker.reports import Reporter


class Told:
    """Stands for a Monitor's handle."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.post = SimpleNamespace(remote=lambda kind, content: self.messages.append((kind, content)))


def node(number: int, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": f"node-{number}",
        "NodeManagerHostname": f"gpu-{number}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "Alive": alive,
        "Resources": {"CPU": 1.0, **resources},
    }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Those that Ray tells of; a test changes the list."""
    known = [node(1), node(2), node(3)]
    monkeypatch.setattr("ray.nodes", lambda: known)
    monkeypatch.setattr(restarts, "autoscaled_resources", dict)
    return known


def test_cpus_follow_the_nodes(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Restarts(Told(), 1.0, 2)
    given = {"CPU": 0.75, "GPU": 0.0}
    assert observer.worker_resources(2, given) == {"CPU": 0.75, "GPU": 0.0}
    nodes[0]["Alive"] = False
    assert observer.worker_resources(2, given) == {"CPU": 0.5, "GPU": 0.0}
    assert observer.worker_resources(1, given) == {"CPU": 1.0, "GPU": 0.0}  # elastic: fewer workers
    assert Restarts(Told(), None, 2).worker_resources(2, given) == given  # cluster.cpus_per_worker says how many
    monkeypatch.setattr(restarts, "autoscaled_resources", lambda: {"CPU": 64.0})
    assert observer.worker_resources(2, given) == given  # a node comes for the one that was lost


def test_a_line_says_why_workers_restart(nodes: list[dict[str, Any]]) -> None:
    told = Told()
    observer = Restarts(told, 1.0, 2)
    observer.worker_resources(2, {"CPU": 0.75})
    failed = Exception()
    failed.worker_failures = {1: RuntimeError("Traceback\n  of a worker\nValueError: too many\n")}  # type: ignore[attr-defined]
    observer.on_state("RUNNING", None, [])
    observer.on_state("RESTARTING", failed, [])
    nodes[1]["Alive"] = False
    observer.on_state("RESTARTING", failed, [])
    assert told.messages == [
        ("running", None),
        ("restart", ("worker 1 failed (ValueError: too many)", ", attempt 1 of 2")),
        ("restart", ("node gpu-2 (10.0.0.2) lost", ", attempt 2 of 2")),
    ]
    endless = Restarts(told, 1.0, -1)
    endless.on_state("RESTARTING", failed, [])
    assert told.messages[-1] == ("restart", ("worker 1 failed (ValueError: too many)", ", attempt 1"))


def test_the_line_tells_the_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    listener = SimpleNamespace(_seen={1, 2, 9})
    Listener._take_restart(listener, ("node gpu-2 (10.0.0.2) lost", ", attempt 1 of 2"))  # type: ignore[arg-type]
    wanted = "note: node gpu-2 (10.0.0.2) lost, workers restart from epoch 10, attempt 1 of 2\n"
    assert capsys.readouterr().err == wanted


def test_a_node_that_is_drained_gets_a_checkpoint_and_is_left(nodes: list[dict[str, Any]]) -> None:
    told = Told()
    observer = Restarts(told, 1.0, 2)
    observer.worker_resources(2, {"CPU": 0.75})
    for _ in range(2):  # the controller tells it at each look
        observer.on_state("PREEMPTING", None, ["node-2"])
    observer.on_state("RESTARTING", Exception(), ["node-2"])
    assert told.messages == [
        ("drain", "node gpu-2 (10.0.0.2) is drained: the workers write a checkpoint"),
        ("restart", ("node gpu-2 (10.0.0.2) drained", "")),
    ]
    assert observer.worker_resources(2, {"CPU": 0.75}) == {"CPU": 0.5}  # of the two nodes that stay


def test_the_monitor_asks_for_a_checkpoint() -> None:
    kept = Monitor.__ray_metadata__.modified_class()
    assert kept.beat(0, 1, 1) == (False, 0)
    kept.post("drain", "node gpu-2 is drained")
    assert kept.beat(0, 1, 2) == (False, 1)
    kept.post("running", None)  # the workers that run now have not been asked
    kept.request_stop()
    assert kept.beat(0, 1, 3) == (True, 0)


def test_workers_agree_on_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(reports, "report", lambda loop, *_: written.append(loop.steps_done))
    answers = iter([(False, 0), (False, 1), (False, 1), (True, 1)])
    reporter = Reporter(
        SimpleNamespace(), corpus=SimpleNamespace(train=[]), ids=None, collective=Collective(), context=None,  # type: ignore[arg-type]
        every_steps=None, precision="fp32", trace=False, profile=None,
    )  # fmt: skip

    def read() -> None:
        reporter._asked_to_stop, reporter._checkpoints_asked = next(answers)

    monkeypatch.setattr(reporter, "_read_answer", read)
    loop: Any = SimpleNamespace(steps_done=0, epoch=2)
    for loop.steps_done in range(5, 20, 5):
        reporter.between_steps(loop)
    assert written == [10]  # once, and training goes on
    loop.steps_done = 20
    with pytest.raises(reports.StopRequested):
        reporter.between_steps(loop)
    assert written == [10, 20]
