"""What a Ray session leaves behind when its command was killed is ended and removed, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.tracking.tracked import wait_for
from trainers.cluster.session_cleaner import processes_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

COMMAND = """
import sys, time
from pathlib import Path
from trainers.cluster import session_cleaner
session_cleaner.clean_up_after(Path(sys.argv[1]))
if sys.argv[2:]:
    print(*session_cleaner.keep_logs(), flush=True)
print("started", flush=True)
time.sleep(60)
"""
HOLDER = "import sys, time; log = open(sys.argv[1], sys.argv[2]); print('open', flush=True); time.sleep(120)"


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("keep", [False, True])
def test_processes_and_folder_go_once_the_command_was_killed(tmp_path: Path, keep: bool) -> None:
    session, other = tmp_path / "session_1", tmp_path / "session_12"
    for folder in (session, other):
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / "agent.log").touch()
    opened = ((session, "a"), (other, "a"), (session, "r"))
    left, *bystanders = (started("-S", "-c", HOLDER, str(of / "logs" / "agent.log"), mode) for of, mode in opened)
    command = started("-c", COMMAND, str(session), *(["keep"] if keep else []))
    try:
        assert [line(process) for process in (left, *bystanders)] == ["open\n"] * 3
        if keep:
            assert line(command) == f"{session}/logs\n"
        assert line(command) == "started\n"
        assert processes_of(session) == [left.pid]
        command.kill()
        assert left.wait(30) == -9
        if not keep:
            wait_for(lambda: not session.exists())
        assert session.exists() == keep and other.is_dir()
        assert [bystander.poll() for bystander in bystanders] == [None, None]
    finally:
        for process in (command, left, *bystanders):
            process.kill()
            process.communicate()
