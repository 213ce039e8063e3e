"""A profile holds the steps that it says, once."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainers.step.profiling import STEPS, WAIT, WARM_UP, StepProfile


def test_five_steps_are_written_once(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path)
    x = torch.ones(8, 8)
    for _ in range(WAIT + WARM_UP + STEPS + 3):
        x @ x
        profile.step()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == STEPS
    assert "aten::mm" in (tmp_path / "summary.txt").read_text()
