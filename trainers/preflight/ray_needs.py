"""What a Ray of this machine needs of it. Looked at before one is started, and by `m2can doctor`."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets_manifest.errors import InputError

SOCKET_PATH_BYTES = 107  # Linux: longer paths cannot be a Unix socket's
LEAST_FILES = 1024
_SESSION = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # as Ray names it


@dataclass(frozen=True)
class Lack:
    """Something that keeps Ray from starting. field: the variable or setting. remedy: what to do."""

    field: str
    problem: str
    value: str
    remedy: str


def ray_temp_folder() -> Path:
    """The folder in which Ray makes its own, `ray`."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def lacks() -> Iterator[Lack]:
    """What is missing for a Ray of this machine; nothing is written."""
    yield from _temp_folder(ray_temp_folder())
    yield from _home()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most not in (resource.RLIM_INFINITY, -1) and most < LEAST_FILES:
        problem = "allows too few open files"
        yield Lack("ulimit -n", problem, str(most), f"at least {LEAST_FILES}: ulimit -Hn {LEAST_FILES}")
    memory = Path("/dev/shm")
    if memory.is_dir() and not os.access(memory, os.W_OK):
        yield Lack("/dev/shm", "shared memory cannot be written", str(memory), f"chmod 1777 {memory}")


def require_ray_can_start() -> None:
    """Raises InputError: the first lack, with its remedy."""
    for lack in lacks():
        raise InputError(f"Ray cannot start: {lack.problem}", field=lack.field, value=lack.value, wanted=lack.remedy)


def _temp_folder(folder: Path) -> Iterator[Lack]:
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    longest = len(os.fsencode(folder.absolute() / _SESSION.format(pid=os.getpid())))
    if longest > SOCKET_PATH_BYTES:
        room = SOCKET_PATH_BYTES - longest + len(os.fsencode(folder.absolute()))
        problem = f"its sockets' paths would have {longest} bytes and may have {SOCKET_PATH_BYTES}"
        yield Lack(name, problem, str(folder), f"a folder of at most {room} bytes: RAY_TMPDIR=/tmp")
        return
    own = folder / "ray"
    place = own if own.exists() else folder
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        yield Lack(name, "its temporary folder cannot be written", str(place), "RAY_TMPDIR, a folder that can")


def _home() -> Iterator[Lack]:
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # then Ray writes no token
    home = os.environ.get("HOME") or _home_of_user()
    if home is None:
        problem = "the user has neither a name nor a home folder"
        yield Lack("HOME", problem, f"user id {os.getuid()}", "HOME, a folder that can be written")
        return
    token = Path(home) / ".ray"
    place = token if token.exists() else Path(home)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        yield Lack("HOME", "the home folder cannot be written", str(place), "HOME, a folder that can be written")


def _home_of_user() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
