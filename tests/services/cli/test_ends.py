"""`m2can train` as a process that is ended: how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainers.tiny_run import small_recipe
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import open_client

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /dev/shm")]

LEFT_WITHIN_S = 15
LOST_WITHIN_S = 30
PATIENCE_S = 200
MEMORY = "/dev/shm/"


class Run:
    """Commands of runs on the same data, with one store."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        changes = ["train.epochs=40", "train.batch_size=3", "cluster.workers=1"]
        self.recipe, self.log = folder / "recipe.json", folder / "log"
        self.recipe.write_text(small_recipe(folder, changes).model_dump_json())
        self.storage, self.temporary = folder / "runs", temporary
        self.processes: dict[int, psutil.Process] = {}

    def start(self, name: str, when: Callable[[], Any], *changes: str) -> psutil.Popen:
        """Give the command of the run `name` and wait until `when` is true."""
        self.name, self.folder = name, self.storage / name
        environment = os.environ | {"TMPDIR": str(self.temporary), "RAY_ADDRESS": "local", "PYTHONUNBUFFERED": "1"}
        for variable in ("MLFLOW_TRACKING_URI", "RAY_TMPDIR"):
            environment.pop(variable, None)
        command = [sys.executable, "-m", "services.cli.main", "train", str(self.recipe)]
        for change in (f"run.name={name}", *changes):
            command += ["--set", change]
        with self.log.open("w") as log:
            self.command = psutil.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not when():
            assert self.command.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        self.processes = {process.pid: process for process in self.command.children(recursive=True)}
        self.memory = {path for process in self.processes.values() for path in shared_memory_of(process)}
        return self.command

    def trains(self) -> bool:
        return " step " in self.log.read_text()

    def process(self, words: str) -> psutil.Process:
        """The one of the command's processes whose command line has the words."""
        (found,) = [each for each in self.processes.values() if words in " ".join(each.cmdline())]
        return found

    def ends(self, code: int, within_s: float, *, keeps_logs: bool = False) -> str:
        """The line with which it ends, with this exit code. Nothing is left behind then."""
        self.keeps_logs = keeps_logs
        try:
            assert self.command.wait(within_s) == code, self.log.read_text()
        except psutil.TimeoutExpired:
            raise AssertionError(f"it did not end within {within_s} s: {self.log.read_text()}") from None
        finally:
            if self.command.poll() is None:
                self.command.kill()
        ended = time.monotonic()
        while left := self.left_behind():
            assert time.monotonic() - ended < LEFT_WITHIN_S, left
            time.sleep(0.3)
        printed = self.log.read_text()
        assert "Traceback" not in printed
        return next((line for line in reversed(printed.splitlines()) if line.startswith("m2can: ")), "")

    def left_behind(self) -> list[str]:
        """Processes, shared memory and temporary folders of the command."""
        alive = [str(process) for process in self.processes.values() if process.is_running()]
        folders = [*self.temporary.glob("[!r]*"), *(() if self.keeps_logs else self.temporary.glob("ray/session_2*"))]
        return alive + [path for path in self.memory if os.path.exists(path)] + [str(path) for path in folders]

    def status(self) -> str:
        client = open_client(resolve_tracking_uri(None, self.storage))
        runs = client.search_runs([client.get_experiment_by_name("m2can").experiment_id])
        (run,) = [run for run in runs if run.data.tags["m2can.run_name"] == self.name]
        return str(run.info.status)


def shared_memory_of(process: psutil.Process) -> list[str]:
    try:
        return [each.path for each in process.memory_maps() if each.path.startswith(MEMORY)]
    except psutil.Error:  # it has ended meanwhile
        return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    temporary = Path(tempfile.mkdtemp(prefix="m2e", dir="/tmp"))  # a short path: Ray's sockets lie below
    yield Run(tmp_path_factory.mktemp("ends"), temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def test_ctrl_c_leaves_a_checkpoint(run: Run) -> None:
    """In its own group, as a terminal has it: Ray Train would take Ctrl-C for itself."""
    os.killpg(run.start("ended", run.trains).pid, signal.SIGINT)
    assert run.ends(130, PATIENCE_S).endswith("run.name=ended goes on from there")
    assert run.status() == "KILLED" and list(run.folder.glob("checkpoint_*"))


def test_a_hangup_before_the_workers_run(run: Run) -> None:
    process = run.start("early", lambda: list(run.temporary.glob("ray/session_2*")) and run.folder.exists())
    process.send_signal(signal.SIGHUP)
    assert run.ends(129, PATIENCE_S) == "m2can: early: stopped while no worker ran; run.name=early goes on"
    assert run.status() == "KILLED"


def test_sigterm_while_the_report_is_drawn(run: Run) -> None:
    process = run.start("drawn", lambda: list(run.folder.glob(".report*")), "train.epochs=1")
    process.send_signal(signal.SIGTERM)
    assert run.ends(143, PATIENCE_S) == "m2can: stopped; run.name=drawn goes on"
    assert run.status() == "KILLED" and not list(run.folder.glob(".report*"))


def test_sigkill_leaves_nothing_either(run: Run) -> None:
    run.start("killed", run.trains).kill()
    assert run.ends(-signal.SIGKILL, PATIENCE_S) == ""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("gcs_server", r"Ray's head at \S+ does not answer for \d+ s"),
        ("raylet/raylet", r"Ray's raylet at \S+ does not answer for \d+ s"),
        ("TrainController", r"Ray ended the run \(.*\)"),
    ],
    ids=["head", "raylet", "controller"],
)
def test_a_part_of_ray_dies(run: Run, part: str, words: str) -> None:
    run.start("killed", run.trains)
    run.process(part).kill()
    printed = run.ends(1, LOST_WITHIN_S, keeps_logs=True)
    logs = run.temporary / "ray" / r"session_\S+" / "logs"
    line = rf"m2can: {words}; Ray's logs: {logs}\. Give the command again: a run goes on from its last checkpoint"
    assert re.fullmatch(line, printed), printed
    assert run.status() == "FAILED"
