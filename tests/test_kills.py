"""Killed at up to eight points of each writer, and twice in the middle of its largest file: what is read then is the old or
the new, and the next command goes on."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from datasets_manifest import files
from datasets_manifest.files import write_atomically
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.packing.pack import Packing, pack, unpack
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from services.api.audit import AuditLog
from services.prediction_output import write_predictions
from tests.trainers.made_run import made_run
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.journal.journal import EpochRecord, Journal
from trainers.model.card import load_card
from trainers.model.checkpoint import save_model, verify
from trainers.preflight.inputs import recipe_of_run
from trainers.preflight.preparation import Prepared, claim
from trainers.preflight.run_lock import driver_lock
from trainers.reports import run_report
from tuning.driver import _claim as claim_sweep
from tuning.sweep import Sweep, SweepPlan

POINTS = 10
# What changes a file system: of the modules `posix` and `_io`, of files, and of safetensors.
_OF_THE_SYSTEM = {"mkdir", "rename", "replace", "unlink", "rmdir", "symlink", "open", "fsync", "scandir"}
_OF_FILES = {"write", "writelines", "flush", "close", "open"}


class Points:
    """Counts the calls that change the file system, in all threads; ends the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.count, self.last = 0, last

    def __call__(self, frame: object, event: str, function: Any) -> None:
        if event in ("c_call", "c_return") and self.changes(function):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def changes(function: Any) -> bool:
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if getattr(owner, "__name__", "") in ("posix", "_io"):
            return name in _OF_THE_SYSTEM
        return name.startswith("serialize") or (type(owner).__module__ == "_io" and name in _OF_FILES)


def in_a_process(write: Callable[[], Any], last: int | None = None, most_bytes: int | None = None) -> int:
    """Run `write` in a process that is killed at point `last`, or in the middle of a file that grows beyond `most_bytes`.

    Returns:
        the number of points that it passed; −1: it was killed.
    """
    read, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        points = Points(last)
        try:
            if most_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            threading.setprofile(points)
            sys.setprofile(points)
            write()
            sys.setprofile(None)
            os.write(told, str(points.count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(told)
    with os.fdopen(read, "rb") as answer:
        count = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL, -signal.SIGXFSZ), status
    return int(count) if status == 0 else -1


@dataclass(frozen=True)
class Writer:
    """write: the old (1) or the new (2) content. read: which of them is there, 0 for none; raises on a half-made one.

    replaces: a folder is put in the place of another: between the two renames there is neither.
    """

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    replaces: bool = False


def json_value(file: Path) -> int:
    return int(json.loads(file.read_text())["value"]) if file.is_file() else 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("run"), ["train.epochs=1", "run.name=killed"])


@pytest.fixture(scope="module")
def writers(run: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writer]:
    loop, outcome = make_loop(run), made_run(tmp_path_factory.mktemp("made"))
    manifest = load_manifest(run.recipe.data.target)
    packed = load_manifest(pack(manifest, tmp_path_factory.mktemp("packed"), Packing()).manifest)

    def append(folder: Path, value: int) -> None:
        Journal(folder / "journal").append(EpochRecord(1, 1, 0.0, {"value": float(value)}))

    def last_value(folder: Path) -> int:
        return int(sum(record.metrics["value"] for record in Journal(folder / "journal").read()))

    def checkpoint(folder: Path, value: int) -> None:
        loop.snapshot({"kept_rows": torch.zeros(value)}).write(folder / f"checkpoint_{value}")

    def newest(folder: Path) -> int:
        whole = sorted(folder.glob("checkpoint_*"))
        for each in whole:
            verify(each)
        return int(whole[-1].name[-1]) if whole else 0

    def card(folder: Path, value: int) -> None:
        with files.whole_folder(folder / "model", replace=True) as draft:
            save_model(draft, loop.network, replace(run.card, target=str(value)))

    def target_of(folder: Path) -> int:
        return int(load_card(folder / "model").target) if (folder / "model").is_dir() else 0

    def records(folder: Path) -> int:
        if not (folder / "manifest.yaml").is_file():
            return 0
        loaded = load_manifest(folder / "manifest.yaml")
        assert {split: read_split(loaded, split).table.num_rows for split in loaded.splits} == {"train": 30, "val": 12}
        return 2

    def cards(folder: Path) -> int:
        stamp = folder / "cards" / "postcards.json"
        if not (folder / "cards").is_dir():
            return 0
        seed = json.loads(stamp.read_text())["seed"]
        assert all((folder / "cards" / d / "manifest.yaml").is_file() for d in ("seaside", "city", "mountain"))
        return int(seed)

    def report(folder: Path, value: int) -> None:
        run_report.draw_report(replace(outcome, folder=folder, name=str(value)))

    def reported(folder: Path) -> int:
        page = folder / "report" / "report.html"
        return int(page.read_text()) if page.is_file() else 0

    def plan(value: int) -> SweepPlan:
        sweep = Sweep.model_validate({"name": "radius", "space": {"sam.rho": {"choices": [0, 0.1]}}, "trials": value})
        return SweepPlan(sweep, Path("sweep.yaml"), {}, Path("recipe.yaml"))

    def sweep(folder: Path, value: int) -> None:
        (folder / "sweep.json").unlink(missing_ok=True)
        claim_sweep(plan(value), folder)

    def trials(folder: Path) -> int:
        file = folder / "sweep.json"
        return int(json.loads(file.read_text())["sweep"]["trials"]) if file.is_file() else 0

    def predictions(folder: Path, value: int) -> None:
        write_predictions(pa.table({"id": [str(value)] * 20_000}), folder / "p.csv")

    def predicted(folder: Path) -> int:
        if not (folder / "p.csv").is_file():
            return 0
        lines = (folder / "p.csv").read_text().splitlines()
        assert len(lines) == 20_001
        return int(lines[1].strip('"'))

    def recipe(folder: Path, value: int) -> None:
        claim(replace(run, folder=folder / "run"))

    def claimed(folder: Path) -> int:
        return 2 if recipe_of_run(folder / "run") is not None else 0

    def lock(folder: Path, value: int) -> None:
        with driver_lock(folder / "run"):
            pass

    def audit(folder: Path, value: int) -> None:
        AuditLog(folder / "audit.jsonl").write(value=value)

    def audited(folder: Path) -> int:
        file = folder / "audit.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        lines = [line for line in lines if line.endswith("}")]  # half a line stays, and stands alone
        return max((json.loads(line)["value"] for line in lines), default=0)

    return {
        "journal": Writer(append, last_value),
        "checkpoint": Writer(checkpoint, newest),
        "card and weights": Writer(card, target_of, replaces=True),
        "pack": Writer(lambda folder, _: pack(manifest, folder, Packing()), records),
        "unpack": Writer(lambda folder, _: unpack(packed, folder), records),
        "generate": Writer(
            lambda folder, seed: write_postcards(folder / "cards", seed=seed, train=3, val=3), cards, replaces=True
        ),
        "report": Writer(report, reported, replaces=True),
        "sweep's ledger": Writer(sweep, trials, replaces=True),
        "manifest, trial, best recipe, page": Writer(
            lambda folder, value: write_atomically(folder / "x.json", json.dumps({"value": value, "more": "x" * 9999})),
            lambda folder: json_value(folder / "x.json"),
        ),
        "predictions": Writer(predictions, predicted),
        "a run's recipe": Writer(recipe, claimed),
        "a run's lock": Writer(lock, lambda folder: 0, replaces=True),
        "audit log": Writer(audit, audited),
    }


NAMES = (
    "journal", "checkpoint", "card and weights", "pack", "unpack", "generate", "report", "sweep's ledger",
    "manifest, trial, best recipe, page", "predictions", "a run's recipe", "a run's lock", "audit log",
)  # fmt: skip
ONLY_NEW = ("checkpoint", "pack", "unpack")  # where it is there already, it is not written again
ONCE = ("pack", "unpack", "a run's recipe", "a run's lock")  # there is no older content of these


def draw(outcome: Any, folder: Path, pictures: bool) -> None:
    """In the place of the pictures, which take seconds."""
    assert pictures
    for name, content in (("summary.json", "{}"), ("curves.png", "x" * 5000), ("report.html", outcome.name)):
        (folder / name).write_text(content)


@pytest.mark.parametrize("name", NAMES)
def test_killed_anywhere_the_old_or_the_new_is_there_and_it_goes_on(
    name: str,
    writers: dict[str, Writer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(files, "_SURELY_LOCKED_S", -1.0)
    monkeypatch.setattr(run_report, "_draw", draw)
    writer, first = writers[name], tmp_path / "first"
    first.mkdir()
    old = 0
    if name not in ONCE:
        writer.write(first, 1)
        old = 1
        assert writer.read(first) == 1
    counted = tmp_path / "counted"
    shutil.copytree(first, counted)
    points = in_a_process(lambda: writer.write(counted, 2))
    new = writer.read(counted)
    wanted = sorted(path.relative_to(counted) for path in counted.rglob("*") if ".parts" not in path.parts)
    assert points > 0 and (new != old or name == "a run's lock")
    largest = max((path.stat().st_size for path in counted.rglob("*") if path.is_file()), default=2)
    places = sorted({1 + k * (points - 1) // (POINTS - 3) for k in range(POINTS - 2)})
    kills = [{"last": place} for place in places]
    kills += [{"most_bytes": largest // 2}, {"most_bytes": max(1, largest - 1)}]
    killed = 0
    for number, kill in enumerate(kills):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(first, folder)
        killed += in_a_process(lambda folder=folder: writer.write(folder, 2), **kill) < 0
        allowed = {old, new} | ({0} if writer.replaces else set())
        assert writer.read(folder) in allowed, kill
        caplog.clear()
        left = [path for path in folder.rglob(".*") if len(path.suffix) == 33]
        if name not in ONLY_NEW or writer.read(folder) != new:
            writer.write(folder, 2)
        assert writer.read(folder) == new, kill
        found = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        if name != "checkpoint":  # each has a name of its own: resume removes what is left
            assert found == wanted, (kill, left)
            assert len(left) == 0 or "left half written is removed" in caplog.text, (kill, left)
    assert killed >= len(kills) - 1
