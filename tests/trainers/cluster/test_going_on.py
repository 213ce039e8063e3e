"""A run that stopped early, and runs that add epochs to it on one and two workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers.cluster.test_driver import EXACT, run_on
from trainers.reports.run_report import draw_report

FROZEN = [*EXACT, "encoders.picture.batch_norm=frozen", "encoders.text.freeze=all", "uacr.warmup=1"]
STILL = [f"optimizer.lr.{part}=0" for part in ("encoders", "projections", "fusion", "heads")]


@pytest.mark.slow
@pytest.mark.timeout(900)  # three runs
def test_more_epochs_are_the_same_on_one_and_two_workers(tmp_path: Path, ray_cluster: None) -> None:
    """The first run moves nothing, so it stops after its warm-up and two epochs more, on both workers."""
    still = [*FROZEN, *STILL, "schedule.lowest_lr=0", "train.epochs=6", "train.patience=2"]
    first, _ = run_on(tmp_path, 2, still)
    assert [record.epoch for record in first.records] == [1, 2, 3]
    why = first.numbers()["stopped_early"]
    assert why.startswith("after epoch 3 of 6: no selection score better than epoch") and why.endswith(
        "(train.patience)"
    )
    draw_report(first)
    assert "The run stopped early, after epoch 3 of 6" in (first.folder / "report" / "report.html").read_text()
    first = first.folder.rename(tmp_path / "runs" / "first")
    more = [*FROZEN, "train.epochs=5", "train.start_from=first"]
    (one, trace_one), (two, trace_two) = run_on(tmp_path, 1, more), run_on(tmp_path, 2, more)
    assert [(step["epoch"], step["step"]) for step in trace_one] == [(e, s) for e in (4, 5) for s in range(1, 6)]
    for a, b in zip(trace_one, trace_two, strict=True):
        assert {"cdafa", "mcc"} < a["second"].keys()  # with the pseudo labels of the run before
        assert a["second"] == pytest.approx(b["second"], rel=1e-6, abs=1e-12), (a["epoch"], a["step"])
    for outcome in (one, two):
        assert [record.epoch for record in outcome.records] == [4, 5]
        assert outcome.numbers()["started_from"] == "first, epoch 3"
        names = {path.name for path in outcome.folder.iterdir() if path.name.endswith((".safetensors", ".json"))}
        assert {"frozen.safetensors", "recipe.json", "start.json"} <= names
        assert (outcome.checkpoint / "model" / "frozen.json").is_file()
