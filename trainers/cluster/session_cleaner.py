"""Removes what a Ray of a command's own leaves behind, whatever ended the command.

After a SIGKILL Ray's agents stay for a minute, and when its raylet has died before, the workers do, too; the session's folder
stays always. This is run as a script beside the command, with standard modules alone so that it is there at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

OWN_END_S = 5.0  # how long Ray has to end its processes itself
_cleaners: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}  # by session: the cleaner, the pipe to it


def clean_up_after(session: Path) -> None:
    """Start the process that cleans up once this one has ended. Linux only.

    Args:
        session: folder of the Ray that this process started.
    """
    if sys.platform != "linux":
        return
    read, write = os.pipe()  # nothing but the end of this process closes its end
    command = [sys.executable, "-I", "-S", __file__, str(session)]
    nowhere = subprocess.DEVNULL
    cleaner = subprocess.Popen(command, stdin=read, stdout=nowhere, stderr=nowhere, cwd="/", start_new_session=True)
    os.close(read)
    _cleaners[session] = cleaner, write


def keep_logs() -> list[Path]:
    """Let the folders of the sessions stay, because what happened is read there. Returns where Ray's logs lie."""
    for _, pipe in _cleaners.values():
        with contextlib.suppress(OSError):  # the cleaner was ended
            os.write(pipe, b"keep")
    return [session / "logs" for session in _cleaners]


def kill_own_ray() -> None:
    """End what is left of a Ray that has died: its own way to end would wait for the part that is gone."""
    for session in _cleaners:
        _kill(processes_of(session))


def processes_of(session: Path) -> list[int]:
    """Ids of the other processes that have a file of the session open for writing; all of Ray's write their logs there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if any(_writes_to(session, file) for file in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _writes_to(session: Path, file: Path) -> bool:
    return Path(os.readlink(file)).is_relative_to(session) and bool(file.lstat().st_mode & 0o200)


def main(session: Path) -> None:
    """Wait for the end of the command, end what is left of its Ray, remove the session's folder."""
    keep = sys.stdin.buffer.read()
    deadline = time.monotonic() + OWN_END_S
    while processes_of(session) and time.monotonic() < deadline:
        time.sleep(0.25)
    _kill(processes_of(session))
    if not keep:
        shutil.rmtree(session, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
