"""A disk that is full or must not be written: one line with folder, free and needed, nothing half made, and on it goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from datasets_manifest.disk import CannotWrite, cannot_write
from datasets_manifest.files import whole_file, whole_folder, write_atomically
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing.pack import Packing, pack, unpack
from datasets_manifest.postcards.generate import write_postcards
from services.prediction_output import write_predictions
from tests.small_disk import SMALL_DISK, small_disk
from tests.trainers.made_run import made_run
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.journal.journal import EpochRecord, Journal
from trainers.preflight.preparation import Prepared, claim
from trainers.preflight.run_lock import driver_lock
from trainers.reports.run_report import draw_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("run"), ["train.epochs=1", "run.name=full"])


def writers(run: Prepared, tmp_path: Path) -> dict[str, Callable[[Path], Any]]:
    """What writes more than the small disk holds, but for the last ones, which are given no room at all."""
    manifest = load_manifest(run.recipe.data.target)
    table = pa.table({"id": [str(i) for i in range(40_000)], "label": [f"{i * 7919 % 65537:x}" for i in range(40_000)]})
    outcome = made_run(tmp_path / "made")

    def report(disk: Path) -> Path:
        from dataclasses import replace

        return draw_report(replace(outcome, folder=disk / "made"))

    def checkpoint(disk: Path) -> None:
        loop = make_loop(run)
        loop.snapshot({"kept_rows": torch.zeros(2)}).write(disk / "run" / "checkpoint_1")

    return {
        "generate": lambda disk: write_postcards(disk / "cards", train=12, val=6),
        "pack": lambda disk: pack(manifest, disk / "packed", Packing()),
        "unpack": lambda disk: unpack(manifest, disk / "unpacked"),
        "checkpoint": checkpoint,
        "report": report,
        "predictions": lambda disk: write_predictions(table, disk / "out" / "p.csv"),
        "parquet": lambda disk: write_predictions(table, disk / "out" / "p.parquet"),
    }


NAMES = ("generate", "pack", "unpack", "checkpoint", "report", "predictions", "parquet")


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_after_room_was_made_it_goes_on(run: Prepared, tmp_path: Path, name: str) -> None:
    write = writers(run, tmp_path)[name]
    with small_disk(tmp_path / "disk", SMALL_DISK) as remount:
        with pytest.raises(OSError) as caught:
            write(tmp_path / "disk")
        words = str(caught.value)
        assert isinstance(caught.value, CannotWrite), words
        assert words.count("\n") == 0 and f"{tmp_path / 'disk'}" in words
        assert "No space left on device" in words and "MB free, " in words and "MB needed; make room in" in words
        drafts = [path for path in (tmp_path / "disk").rglob(".*") if path.name != ".parts"]
        assert drafts == []
        remount("size=64m")
        write(tmp_path / "disk")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_must_not_be_written_is_one_line(run: Prepared, tmp_path: Path, name: str) -> None:
    write = writers(run, tmp_path)[name]
    with small_disk(tmp_path / "disk", 2**26) as remount:
        remount("ro")
        with pytest.raises(OSError) as caught:
            write(tmp_path / "disk")
        words = str(caught.value)
        assert isinstance(caught.value, CannotWrite), words
        assert "cannot be written (Read-only file system); make" in words and words.count("\n") == 0
        remount("rw")
        write(tmp_path / "disk")


def test_no_room_at_all(run: Prepared, tmp_path: Path) -> None:
    """What is small: a record of the journal, a run's recipe, its lock."""
    from dataclasses import replace

    with small_disk(tmp_path / "disk", 2**20) as remount:
        disk = tmp_path / "disk"
        filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError):
            while True:
                os.write(filler, b"\0" * 4096)
        os.close(filler)
        moved = replace(run, folder=disk / "run")
        record = EpochRecord(1, 1, 0.0, {"loss/total": 1.0})
        for write in (lambda: Journal(disk / "run" / "journal").append(record), lambda: claim(moved)):
            with pytest.raises(CannotWrite, match=r"No space left on device: 0\.0 MB free, 0\.0 MB needed"):
                write()
        with pytest.raises(CannotWrite, match="No space left on device"), driver_lock(disk / "run"):
            pytest.fail("locked without room for the lock")
        assert sorted(path.name for path in disk.iterdir()) == ["filler"]
        remount("size=8m")
        with driver_lock(disk / "run"):
            claim(moved)
            Journal(disk / "run" / "journal").append(record)
        assert sorted(path.name for path in (disk / "run").iterdir()) == ["data.json", "journal", "recipe.json"]


def test_the_one_before_stays_when_the_new_one_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    with whole_folder(folder) as draft:
        (draft / "page").write_text("old")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == folder and (self / "page").read_text() == "new":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CannotWrite), whole_folder(folder, replace=True) as draft:
        (draft / "page").write_text("new")
    assert (folder / "page").read_text() == "old" and os.listdir(tmp_path) == ["report"]


def test_words_only_for_errors_of_writing(tmp_path: Path) -> None:
    assert cannot_write(tmp_path / "x", FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert cannot_write(tmp_path / "x", ValueError("a b")) is None
    for error in (
        OSError("x: Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ):
        assert "MB needed" in str(cannot_write(tmp_path / "x", error, needed=10**18)), error
    for error in (OSError(errno.EFBIG, "File too large"), OSError("I/O error: File too large (os error 27)")):
        assert "limits the size of a file" in str(cannot_write(tmp_path / "x", error)), error
    with pytest.raises(FileExistsError, match="mine"), whole_file(tmp_path / "x"):
        raise FileExistsError("mine")
    write_atomically(tmp_path / "x", "kept")
    with (
        pytest.raises(CannotWrite, match=r"x: cannot be written \(Permission denied\); make .* writable"),
        whole_file(tmp_path / "x"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert (tmp_path / "x").read_text() == "kept"


def test_an_input_that_must_not_be_read_is_not_called_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="the-input"), whole_file(tmp_path / "out" / "table.csv"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "elsewhere" / "the-input"))
    assert not (tmp_path / "out" / "table.csv").exists()


def test_where_there_is_room_no_numbers_are_given(tmp_path: Path) -> None:
    """A quota is used up, or another disk is full."""
    for number in (errno.EDQUOT, errno.ENOSPC):
        said = str(cannot_write(tmp_path / "file", OSError(number, "x")))
        assert os.strerror(number) in said and "make room" in said and "needed" not in said


def test_the_root_has_a_folder_too() -> None:
    assert cannot_write(Path("/"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None


def test_a_folder_that_was_set_aside_is_put_back(tmp_path: Path) -> None:
    """A command was killed between the two renames, and the next one fails."""
    report = tmp_path / "report"
    aside = tmp_path / ".report.before"
    aside.mkdir()
    (aside / "page.html").write_text("old")
    with pytest.raises(ValueError, match="no more"), whole_folder(report, replace=True):
        raise ValueError("no more")
    assert (report / "page.html").read_text() == "old" and not aside.exists()
    with pytest.raises(KeyboardInterrupt), whole_folder(report, replace=True):
        raise KeyboardInterrupt
    assert (report / "page.html").read_text() == "old"
    with whole_folder(report, replace=True) as draft:
        (draft / "page.html").write_text("new")
    assert (report / "page.html").read_text() == "new" and os.listdir(tmp_path) == ["report"]
