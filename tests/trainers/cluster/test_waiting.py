"""A run that waits for its workers' resources says what it needs, what is free and who has the rest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainers.cluster import monitor, waiting
from trainers.cluster.monitor import Listener
from trainers.journal.journal import Journal


def group(job: str, state: str, *bundles: dict[str, float]) -> dict[str, Any]:
    return {"placement_group_id": f"00ff{job}", "state": state, "bundles": dict(enumerate(bundles))}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Its placement groups; a test changes the list. This process is job 02000000."""
    groups = [group("01000000", "CREATED", {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0})]
    monkeypatch.setattr(waiting, "placement_group_table", lambda: {str(n): one for n, one in enumerate(groups)})
    monkeypatch.setattr(waiting, "_submitted_as", lambda: {"01000000": "train-a"})
    monkeypatch.setattr(
        "ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "02000000"), raising=False
    )
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 5.5})
    return groups


def test_what_is_lacking_and_who_has_it(cluster: list[dict[str, Any]]) -> None:
    needs = {"CPU": 1.0, "GPU": 1.0}
    wanted = (
        "needs 2 CPU, 2 GPU; 5.5 of 8 CPU are free; 0 of 2 GPU are free; train-a has 2 CPU, 2 GPU; "
        "tasks and actors have 0.5 CPU"
    )
    assert waiting.lacking(2, needs) == wanted
    cluster.append(group("02000000", "PENDING", needs, needs))
    assert waiting.lacking(2, needs) == wanted
    cluster[-1]["state"] = "CREATED"
    assert waiting.lacking(2, needs) is None  # placed


def test_enough_is_free_but_not_on_one_node(cluster: list[dict[str, Any]]) -> None:
    assert waiting.lacking(2, {"CPU": 2.0, "GPU": 0}) is None  # Ray Train has not asked yet
    cluster.append(group("02000000", "PENDING", {"CPU": 2.0}, {"CPU": 2.0}))
    told = waiting.lacking(2, {"CPU": 2.0, "GPU": 0})
    assert told == "needs 4 CPU; 5.5 of 8 CPU are free; train-a has 2 CPU, 2 GPU; tasks and actors have 0.5 CPU"


def test_it_is_told_once_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monitor, "TOLD_AFTER_S", 0.0)
    words = iter(["needs 2 CPU", "needs 2 CPU", "needs 2 CPU; train-a has 1 CPU"])
    listener = Listener(
        None, Journal(str(tmp_path)), on_step=print, on_epoch=print, stop=monitor.threading.Event(),
        run_folder=tmp_path, trace=None, lacking=lambda: next(words),
    )  # fmt: skip
    for _ in range(3):
        listener._tell_waiting()
    listener._take_running(None)
    listener._tell_waiting()  # workers run: it does not ask
    told = "note: the run waits for resources: needs 2 CPU"
    assert capsys.readouterr().err.splitlines() == [told, f"{told}; train-a has 1 CPU"]


def test_ray_s_table_of_placement_groups_is_read(ray_cluster: None) -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    own = f"Ray's job {ray.get_runtime_context().get_job_id()}"
    groups = waiting.placement_group_table
    before = waiting.held_by_jobs(list(groups().values())).get(own, {}).get("CPU", 0.0)
    made = placement_group([{"CPU": 1.0}, {"CPU": 0.5}])
    try:
        assert made.wait(60)
        assert waiting.held_by_jobs(list(groups().values()))[own]["CPU"] == before + 1.5
        assert waiting.lacking(1, {"CPU": 1.0}) is None
    finally:
        remove_placement_group(made)
