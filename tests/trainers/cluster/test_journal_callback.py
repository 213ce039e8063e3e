"""The controller's callback records what rank 0 reports, and never ends training."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.cluster.journal_callback import JournalCallback
from trainers.journal.journal import Journal


def test_the_callback_writes_what_rank_0_reports(tmp_path: Path) -> None:
    # It travels to the controller.
    callback = pickle.loads(pickle.dumps(JournalCallback(str(tmp_path))))
    first: dict[str, Any] = {
        "epoch": 2,
        "step": 24,
        "loss/total": np.float32(0.5),
        "uacr/kept": np.int64(7),
        "note": "text",
        "flag": True,
        "list": [1.0],
        "loss/mcc": float("nan"),
    }
    callback.after_report(run_context=None, metrics=[first, {"epoch": 9, "step": 9}], checkpoint=None)
    (found,) = Journal(str(tmp_path)).read()
    assert (found.epoch, found.step) == (2, 24)
    assert found.metrics == {"loss/total": 0.5, "uacr/kept": 7.0}
    assert found.dropped == ("loss/mcc",)


class _Failing:
    """Stands in for Path.replace and fails the first times."""

    def __init__(self, times: int) -> None:
        self.left, self.calls = times, 0

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        if self.calls <= self.left:
            raise OSError("the disk is away")
        os.replace(source, target)


@pytest.mark.parametrize(("times", "written"), [(1, True), (2, False)])
def test_a_failed_write_is_tried_once_more_and_never_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int, written: bool
) -> None:
    failing = _Failing(times)
    monkeypatch.setattr(Path, "replace", lambda source, target: failing(source, target))
    JournalCallback(str(tmp_path)).after_report(None, [{"epoch": 1, "step": 1, "a": 1.0}], None)
    assert failing.calls == 2
    assert bool(Journal(str(tmp_path)).read()) is written
    assert ("epoch 1 is not in the journal" in caplog.text) is not written
    assert (os.listdir(tmp_path) == ["epoch-00001.json"]) is written  # and no draft lies about


def test_a_report_without_an_epoch_is_a_fault_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="epoch"):
        JournalCallback(str(tmp_path)).after_report(None, [{"step": 1}], None)
