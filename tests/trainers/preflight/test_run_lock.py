"""One command at a time works on a run; a dead one's lock is taken over, a live one's owner is named."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from trainers.preflight import run_lock
from trainers.preflight.run_lock import LOCK_FILE, Holder, driver_lock, require_free

HOLD = """
import sys, time
from pathlib import Path
from trainers.preflight.run_lock import driver_lock
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "my-run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_command_is_told_who_has_the_run_until_that_one_dies(
    tmp_path: Path, other_command: subprocess.Popen[str]
) -> None:
    folder = tmp_path / "my-run"
    before = (folder / LOCK_FILE).read_bytes()
    words = (
        rf"run\.name: another command is at work on it: process {other_command.pid} on {socket.gethostname()}, since"
    )
    with pytest.raises(InputError, match=words):
        require_free(folder)
    with pytest.raises(InputError, match=words), driver_lock(folder):
        pass
    assert (folder / LOCK_FILE).read_bytes() == before
    other_command.kill()
    other_command.wait()
    with driver_lock(folder):
        assert json.loads((folder / LOCK_FILE).read_text())["pid"] == os.getpid()
        with pytest.raises(InputError, match="at work"):
            require_free(folder)
    assert os.listdir(folder) == []


def holder(folder: Path, **changes: object) -> Path:
    """A lock file as another process leaves it; without changes that of this process."""
    with driver_lock(folder):
        content = json.loads((folder / LOCK_FILE).read_text())
    (folder / LOCK_FILE).write_text(json.dumps({**asdict(Holder(**content)), **changes}))
    return folder / LOCK_FILE


def test_a_process_id_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    holder(tmp_path, began=1)
    with driver_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_lock_that_was_cut_off_is_nobody_s(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with driver_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("beats", [True, False])
def test_a_process_of_another_machine_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    monkeypatch.setattr(run_lock, "DEAD_AFTER_S", 0.5)
    monkeypatch.setattr(run_lock, "BEAT_S", 0.1)
    file, over, told = holder(tmp_path, host="far-away"), threading.Event(), []

    def beat() -> None:
        while not over.wait(0.1):
            os.utime(file)

    beating = threading.Thread(target=beat)
    if beats:
        beating.start()
    try:
        if beats:
            with pytest.raises(InputError, match=r"process \d+ on far-away"), driver_lock(tmp_path):
                pass
        else:
            with driver_lock(tmp_path, on_wait=told.append):
                pass
            assert "far-away" in told[0] and "whether that process is alive" in told[0]
    finally:
        over.set()
        if beats:
            beating.join()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    holder(tmp_path / "run", pid=2**22 + 1)  # dead: larger than any process id
    start, all_tried, held, refused = threading.Barrier(8), threading.Event(), [], []

    def work() -> None:
        start.wait()
        try:
            with driver_lock(tmp_path / "run"):
                held.append(1)
                all_tried.wait(30)
        except InputError as error:
            refused.append(str(error))
        if len(refused) == 7:
            all_tried.set()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_the_holder_beats_and_leaves_a_lock_alone_that_was_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "BEAT_S", 0.05)
    file = tmp_path / LOCK_FILE
    with driver_lock(tmp_path):
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "token": "another"}))
    assert json.loads(file.read_text())["token"] == "another"


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"run\.storage: cannot be made or written"),
        driver_lock(tmp_path / "file" / "run"),
    ):
        pass
