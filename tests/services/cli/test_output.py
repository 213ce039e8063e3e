"""What commands print while a run goes on."""

from __future__ import annotations

import pytest
from pytest import CaptureFixture

from services.cli import output


def test_plain_lines_of_progress(capsys: CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(output.time, "monotonic", lambda: clock["now"])
    content = {"epoch": 2, "steps": 10, "samples": 40, "passes": {"second": {"task": 1.5, "total": 1.25}}}
    with output.RunProgress(4, as_json=False) as progress:
        for step, clock["now"] in ((5, 100.0), (6, 105.0), (7, 120.0)):  # the second comes too soon to be shown
            progress.on_step({**content, "step": step})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "epoch 2/4 step 5/10  task 1.500  total 1.250",
        "epoch 2/4 step 7/10  4 samples/s  task 1.500  total 1.250  3:50 min left",
    ]
