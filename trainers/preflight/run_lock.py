"""One command at a time works on a run or a sweep: a lock in its folder, with host, process and a heartbeat."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from datasets_manifest.disk import cannot_write
from datasets_manifest.errors import InputError
from datasets_manifest.files import made_folder

LOCK_FILE = ".driver.json"
BEAT_S = 5.0
DEAD_AFTER_S = 4 * BEAT_S
_LEAST_BYTES = 4096  # a block of a disk


@dataclass(frozen=True)
class Holder:
    """Who works on a run.

    processes: identity of the PID namespace; a container of the same host name has another one.
    began: when the process began, in ticks since the machine started: process ids are used again.
    """

    token: str
    host: str
    processes: int
    pid: int
    began: int | None
    since: str

    @property
    def is_local(self) -> bool:
        """Whether its process can be looked up from here."""
        return (self.host, self.processes) == (socket.gethostname(), _process_namespace())

    def is_running(self) -> bool:
        """For a holder that is local."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.began is None or self.began == _began(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def require_free(
    folder: Path, field: str = "run.name", on_wait: Callable[[str], None] = lambda words: None
) -> Holder | None:
    """Refuse a folder that another command works on. Writes nothing. Returns the holder that has died, if there is one.

    A process of this machine is looked up. Of another machine's, the heartbeat is watched for DEAD_AFTER_S seconds.

    Args:
        field: that names the folder, for the error.
        on_wait: called with the reason before heartbeats are watched.

    Raises:
        InputError: says who has it.
    """
    file = folder / LOCK_FILE
    holder = _read(file)
    if holder is None:
        return None
    if holder.is_local:
        if holder.is_running():
            raise taken(folder.name, field, holder)
        return holder
    on_wait(f"{folder} belongs to {holder}; looking for {DEAD_AFTER_S:g} s whether that process is alive")
    beat, began = _beat(file), time.monotonic()
    while time.monotonic() - began < DEAD_AFTER_S:
        time.sleep(BEAT_S / 10)
        now = _read(file)
        if now is None:
            return None
        if now != holder or _beat(file) != beat:
            raise taken(folder.name, field, now)
    return holder


def this_process() -> Holder:
    """A holder with a token of its own."""
    return Holder(
        token=uuid4().hex,
        host=socket.gethostname(),
        processes=_process_namespace(),
        pid=os.getpid(),
        began=_began(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


@contextmanager
def driver_lock(
    folder: Path, field: str = "run.name", on_wait: Callable[[str], None] = lambda words: None
) -> Iterator[None]:
    """Hold the lock of `folder`, which is made. The lock of a process that has died is taken over.

    Raises:
        InputError: another command holds it, or there cannot be such a folder.
        CannotWrite: the folder cannot be written, or the disk is full.
    """
    dead, file = require_free(folder, field, on_wait), folder / LOCK_FILE
    own = this_process()
    with contextlib.ExitStack() as made:
        try:
            made.enter_context(made_folder(folder, keep=True))
            _take(file, own, dead, field)
        except OSError as error:
            problem = f"cannot be made or written ({error.strerror})"
            other = InputError(problem, field="run.storage", value=str(folder), wanted="a folder to write to")
            raise cannot_write(folder, error, needed=_LEAST_BYTES) or other from None

        def beat() -> bool:
            is_ours = _read(file) == own
            if is_ours:
                os.utime(file)
            return is_ours

        try:
            with heart(beat):
                yield
        finally:
            with contextlib.suppress(OSError), _alone(file) as lock:
                if _parsed(lock.read()) == own:
                    file.unlink()


@contextmanager
def heart(beat: Callable[[], bool]) -> Iterator[None]:
    """Call `beat` every BEAT_S seconds, in a thread, until the context ends or it says that the lock is another's.

    An OSError is let pass: the disk may be full, or the store away, for a moment.
    """
    over = threading.Event()

    def keep_beating() -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                if not beat():
                    return

    thread = threading.Thread(target=keep_beating, daemon=True, name="m2can-heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _take(file: Path, own: Holder, dead: Holder | None, field: str) -> None:
    """Write our name into the lock. Raises InputError: another one stands in it. Raises OSError: it cannot be written."""
    with _alone(file) as lock:
        now = _parsed(lock.read())
        # The one that was found dead may have been replaced meanwhile.
        if now is not None and now != dead:
            raise taken(file.parent.name, field, now)
        lock.seek(0)
        lock.truncate()
        try:
            lock.write(json.dumps(asdict(own)).encode())
            lock.flush()
        except OSError:
            file.unlink()
            raise


def taken(run: str, field: str, holder: Holder) -> InputError:
    """The refusal of a run that another command has."""
    return InputError(
        f"another command is at work on it: {holder}", field=field, value=run, wanted="its end, or another name"
    )


@contextmanager
def _alone(file: Path) -> Iterator[IO[bytes]]:
    """The file, made if it is not there, with no other process of this machine between read and write."""
    while True:
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as lock:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_same(lock, file):
                yield lock
                return


def _is_same(lock: IO[bytes], file: Path) -> bool:
    """False if its last holder removed the file meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _read(file: Path) -> Holder | None:
    try:
        return _parsed(file.read_bytes())
    except OSError:
        return None


def _parsed(content: bytes) -> Holder | None:
    """None for a file that is empty or cut off: its writer died while it wrote."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _beat(file: Path) -> int | None:
    try:
        with file.open("rb") as stream:  # network file systems look anew when a file is opened
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return None


def _process_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _began(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
