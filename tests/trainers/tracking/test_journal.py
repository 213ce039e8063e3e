from __future__ import annotations

import json
import logging
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.tracking import journal as journal_module
from trainers.tracking.journal import EpochRecord, Journal, JournalCallback


def record(epoch: int, **metrics: float) -> EpochRecord:
    return EpochRecord(epoch, epoch * 10, 1_700_000_000.25 + epoch, metrics or {"loss/total": 1.0 / epoch})


def test_records_come_back_in_order_of_epochs(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "run" / "journal"))
    records = [record(2), record(100_000), record(1)]
    for each in records:
        journal.append(each)
    assert journal.read() == [record(1), record(2), record(100_000)]
    assert journal.read(known={1, 100_000}) == [record(2)]
    assert sorted(os.listdir(journal.folder)) == ["epoch-00001.json", "epoch-00002.json", "epoch-100000.json"]


def test_no_journal_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert Journal(str(tmp_path / "none")).read() == []


def test_an_epoch_written_again_replaces_the_first(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(record(3, accuracy=0.25))
    journal.append(record(3, accuracy=0.5))
    assert [each.metrics for each in journal.read()] == [{"accuracy": 0.5}]


def test_values_that_are_not_finite_leave_their_names(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(record(1, good=1.0, nan=math.nan, endless=-math.inf))
    (found,) = journal.read()
    assert found.metrics == {"good": 1.0}
    assert found.dropped == ("endless", "nan")
    json.loads((tmp_path / "epoch-00001.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("scheme", ["file", "path"])
def test_a_uri_is_a_folder_too(tmp_path: Path, scheme: str) -> None:
    folder = tmp_path / "a folder"
    journal = Journal(folder.as_uri() if scheme == "file" else str(folder))
    journal.append(record(1))
    assert (folder / "epoch-00001.json").is_file()
    assert journal.read() == [record(1)]


def test_drafts_and_strange_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(str(tmp_path))
    journal.append(record(1))
    (tmp_path / "epoch-00002.json.0123.tmp").write_text('{"epoch": 2')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "epoch-00003.json").write_text('{"epoch": 3, "st')
    (tmp_path / "epoch-00004.json").write_text("[]")
    with caplog.at_level(logging.WARNING):
        assert journal.read() == [record(1)]
    assert "epoch-00003.json" in caplog.text
    assert "epoch-00004.json" in caplog.text
    assert "epoch-00002" not in caplog.text


def test_a_write_cut_off_leaves_the_earlier_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path))
    journal.append(record(1, accuracy=0.25))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append(record(1, accuracy=0.5))
    assert os.listdir(tmp_path) == ["epoch-00001.json"]
    assert journal.read()[0].metrics == {"accuracy": 0.25}


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
    """Stands in for os.replace and fails the first times."""

    def __init__(self, times: int) -> None:
        self.left, self.calls, self._replace = times, 0, os.replace

    def __call__(self, source: str, target: str) -> None:
        self.calls += 1
        if self.calls <= self.left:
            raise OSError("the disk is away")
        self._replace(source, target)


@pytest.mark.parametrize(("times", "written"), [(1, True), (2, False)])
def test_a_failed_write_is_tried_once_more_and_never_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int, written: bool
) -> None:
    failing = _Failing(times)
    monkeypatch.setattr(journal_module.os, "replace", failing)
    JournalCallback(str(tmp_path)).after_report(None, [{"epoch": 1, "step": 1, "a": 1.0}], None)
    assert failing.calls == 2
    assert bool(Journal(str(tmp_path)).read()) is written
    assert ("epoch 1 is not in the journal" in caplog.text) is not written
    assert (os.listdir(tmp_path) == ["epoch-00001.json"]) is written  # and no draft lies about


def test_a_report_without_an_epoch_is_a_fault_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="epoch"):
        JournalCallback(str(tmp_path)).after_report(None, [{"step": 1}], None)
