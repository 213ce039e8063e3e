"""A job's log has our lines, not Ray's dumps, and says what the job waits for."""

from __future__ import annotations

from typing import Any

import pytest

from services.jobs import preflight
from services.jobs.job_log import OwnLines, waits_for
from services.jobs.jobs import Job, _with_wait
from trainers.recipe import make_recipe

DUMP = """\
note: computes in fp32 (train.precision)
epoch 1/3 step 1/40  task 3.363
\x1b[33m(raylet)\x1b[0m Raylet is terminated. Termination is unexpected. Last 20 lines of the Raylet logs:
    [state-dump] 	ObjectManagerService.grpc_client.Pull - 1 total (0 active)
    [2026-11-28 14:31:23,224 W 29263 29305] (raylet) memory_monitor_utils.cc:437: Got negative used memory

\x1b[33m(raylet, ip=10.77.0.2)\x1b[0m The node with node id: fa73 has been marked dead. This can happen when a 	(1) raylet
	(2) raylet has lagging heartbeats due to slow network or busy workload.
note: node gpu-1 (10.77.0.3) lost, workers restart from epoch 1, attempt 1 of 2
  chosen epoch   1   25.0 %
"""
WAITING = "note: the run waits for resources: needs 2 GPU; 1 of 4 GPU are free; train-a has 3 GPU\n"


def test_dumps_of_ray_are_left_out() -> None:
    own = "".join(OwnLines().of(DUMP, last=True)).splitlines()
    assert own == [
        "note: computes in fp32 (train.precision)",
        "epoch 1/3 step 1/40  task 3.363",
        "note: node gpu-1 (10.77.0.3) lost, workers restart from epoch 1, attempt 1 of 2",
        "  chosen epoch   1   25.0 %",
    ]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_log_that_comes_in_parts(size: int) -> None:
    lines = OwnLines()
    text = DUMP + "the last line has no end"
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    found = "".join(line for part in parts for line in lines.of(part)) + "".join(lines.of("", last=True))
    assert found == "".join(OwnLines().of(text, last=True))
    assert found.endswith("the last line has no end")


def test_what_a_job_waits_for_is_its_message() -> None:
    assert waits_for(WAITING) == "waits for resources: needs 2 GPU; 1 of 4 GPU are free; train-a has 3 GPU"
    assert waits_for(WAITING + "epoch 1/3 step 1/40  task 3.363\n") is None
    assert waits_for("") is None

    class Client:
        def get_job_logs(self, identity: str) -> str:
            return f"run {identity}\n{WAITING}"

    def job(status: str) -> Job:
        return Job("a", "train", status, "a-run", "Job is running.", "today", None, {})

    client: Any = Client()
    assert _with_wait(client, job("RUNNING")).message.startswith("waits for resources: needs 2 GPU")
    assert _with_wait(client, job("FAILED")).message == "Job is running."

    class Away(Client):
        def get_job_logs(self, identity: str) -> str:
            raise RuntimeError("Request failed with status code 500")

    away: Any = Away()
    assert _with_wait(away, job("RUNNING")).message == "Job is running."


def test_preflight_tells_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe({"data": {"sources": ["a"], "target": "b"}, "cluster": {"workers": 2}})
    total = {"CPU": 4.0}
    monkeypatch.setattr("trainers.cluster.resources.most_resources", lambda: total)
    held = "the cluster can hold 2 worker(s) of 1 CPU each; free now: "
    assert preflight.free_now(recipe, total, {"CPU": 4.0}) == f"{held}4 of 4 CPU"
    waits = "; the run waits until others give back what it needs"
    assert preflight.free_now(recipe, total, {"CPU": 0.5}) == f"{held}0.5 of 4 CPU{waits}"
