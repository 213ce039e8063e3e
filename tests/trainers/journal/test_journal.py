"""Epoch records survive cut-off writes, strange files and values that are not finite."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import pytest

from trainers.journal.journal import EpochRecord, Journal


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


def test_drafts_and_strange_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(str(tmp_path))
    journal.append(record(1))
    (tmp_path / ".epoch-00002.json.0123").write_text('{"epoch": 2')
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

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append(record(1, accuracy=0.5))
    assert os.listdir(tmp_path) == ["epoch-00001.json"]
    assert journal.read()[0].metrics == {"accuracy": 0.25}
