"""A process that has imported what Ray's workers need, and forks them.

Of the seconds between a command and its first step most went into imports: Ray starts ten processes for a run, and each
imported Ray, pandas and torch anew. Here they are imported once. Ray is told to start trainers/cluster/forked_worker.py in place
of Python (`py_executable` of its runtime environment), which asks the server for a worker.

The server is used by the Ray that a command starts for itself, on Linux. Whatever is amiss, a worker starts as Ray would
have started it: there is no server, it is not ready, it serves another Ray, or an import has left it in a state that
forked processes must not share (see `why_not_to_fork`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

OFF = "M2CAN_FORK_WORKERS"  # `0` in the environment: every worker starts by itself
SOCKET = "socket"
# Imported at once. None of them imports Ray, which reads its settings from the environment when it is imported.
BEFORE_RAY = ("trainers.loop.loop", "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert")
# Imported in the environment of the first worker.
WITH_RAY = ("ray.train.torch", "ray.data", "trainers.cluster.worker", "ray.train.v2._internal.execution.controller")
# Ray keeps these for good when it is imported: the job, and the process whose end ends the worker.
FIXED = ("RAY_JOB_ID", "RAY_RAYLET_PID")
_LONGEST_REQUEST = 2**20
_PATIENCE_S = 5.0  # with a request that has begun
_FROM_DRIVER = 0  # standard input, whose end is the driver's

_server: subprocess.Popen[bytes] | None = None


def start_fork_server() -> dict[str, str]:
    """Start a server for the Ray that this process is about to start; one that was started before is ended.

    Returns:
        The runtime environment for `ray.init`; empty where there is no server.
    """
    global _server
    if _server is not None and _server.stdin is not None:
        _server.stdin.close()
        _server.wait()
        _server = None
    if sys.platform != "linux" or os.environ.get(OFF) == "0":
        return {}
    folder = Path(tempfile.mkdtemp(prefix="m2can-workers-"))  # for this user alone
    with (folder / "log").open("wb") as log:
        _server = subprocess.Popen(
            [sys.executable, "-m", "trainers.cluster.fork_server", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={"OMP_NUM_THREADS": "1"} | os.environ,  # as Ray sets it; libgomp reads it once
            start_new_session=True,  # a Ctrl-C is the driver's
        )
    return {"py_executable": shlex.join(worker_command(folder))}


def worker_command(folder: Path) -> list[str]:
    """What starts a worker in place of Python. -I and -S: it must begin at once."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("forked_worker.py")), str(folder / SOCKET),
            sys.executable]  # fmt: skip


class ForkServer:
    """Forks a child for each request, and tells who asked how the child ended.

    A request is a JSON object {argv, env, cwd, priority, open_files} with the three standard files beside it. It is
    answered with `forked`, and with the child's exit status once the child has ended. When who asked ends before that, the
    child is killed.

    Args:
        listener: a listening Unix socket that keeps the borders of messages.
        modules: imported in the environment of the first request.
    """

    def __init__(self, listener: socket.socket, modules: Iterable[str]) -> None:
        self.listener, self.modules = listener, modules
        self._selector = selectors.DefaultSelector()
        self._asked_by: dict[int, socket.socket] = {}
        self._fixed: dict[str, str | None] | None = None
        self._why_not = ""
        self._wake, self._woken = socket.socketpair()

    def serve(self) -> dict[str, Any] | None:
        """Until the driver ends. Returns None then, and in a child its request."""
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for source in (self.listener, self._woken, _FROM_DRIVER):
            self._selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == _FROM_DRIVER:
                    return None
                if key.fileobj is self._woken:
                    self._reap()
                elif key.fileobj is self.listener:
                    request = self._accept()
                    if request is not None:
                        return request
                else:
                    self._gone(key.fileobj)

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self.listener.accept()
        connection.settimeout(_PATIENCE_S)
        files: list[int] = []
        try:
            data, files, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 3)
            request: dict[str, Any] = json.loads(data)
            self._import_for(request)
            child = os.fork()
        except (OSError, ValueError):
            child = None
        if child == 0:
            self._become_child(files)
            return request | {"as_it_is": not self._why_not and self._fixed == fixed(request)}
        for file in files:
            os.close(file)
        if child is None:
            connection.close()  # whoever asked starts the worker itself
        else:
            self._asked_by[child] = connection
            self._selector.register(connection, selectors.EVENT_READ)
            with contextlib.suppress(OSError):  # who asked has ended: the selector tells
                connection.send(b"forked")
        return None

    def _import_for(self, request: dict[str, Any]) -> None:
        if self._fixed is None:
            self._fixed = fixed(request)
            os.environ.update(request["env"])
            with _own_ids():
                preload(self.modules)
            gc.collect()
            gc.freeze()  # what the collector does not touch stays shared between the children
            self._why_not = why_not_to_fork()
            if self._why_not:
                print(f"workers are not forked: {self._why_not}", file=sys.stderr, flush=True)

    def _become_child(self, files: list[int]) -> None:
        os.setpgid(0, 0)  # Ray ends a worker's whole process group
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (*self._asked_by.values(), self.listener, self._wake, self._woken):
            each.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                connection = self._asked_by.pop(child, None)
                if connection is not None:
                    self._selector.unregister(connection)
                    with contextlib.suppress(OSError):
                        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                    connection.close()

    def _gone(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()
        for child in [child for child, asked in self._asked_by.items() if asked is connection]:
            del self._asked_by[child]
            os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still its own


def fixed(request: dict[str, Any]) -> dict[str, str | None]:
    """What of a request's environment must be as it was when Ray was imported."""
    return {name: request["env"].get(name) for name in FIXED}


def preload(modules: Iterable[str]) -> None:
    """Import what can be imported; the rest is imported by those who need it."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


@contextlib.contextmanager
def _own_ids() -> Iterator[None]:
    """Ray draws a number for each actor class that is defined. Its generator, once it is seeded, goes on alike in all
    children, and two actors or placement groups of one number are one to Ray: here the numbers come from elsewhere."""
    import ray.actor
    from ray._raylet import ActorClassID

    class FromTheSystem:
        @staticmethod
        def from_random() -> Any:
            return ActorClassID(os.urandom(ActorClassID.size()))

    with mock.patch.object(ray.actor, "ActorClassID", FromTheSystem):
        yield


def why_not_to_fork() -> str:
    """What of this process its children must not share; empty if there is nothing."""
    from ray._raylet import ObjectID

    opened = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            opened.append(os.readlink(entry))
    if any(link.startswith("/dev/nvidia") for link in opened):
        return "an import has opened a GPU"
    if _of_a_child(lambda: ObjectID.from_random().binary()) == _of_a_child(lambda: ObjectID.from_random().binary()):
        return "an import has seeded Ray's random numbers"
    return ""


def _of_a_child(work: Callable[[], bytes]) -> bytes:
    """What a forked process comes to."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(ours, work())
        finally:
            os._exit(0)
    os.close(ours)
    with open(theirs, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return told


def run_child(request: dict[str, Any]) -> None:
    """Be the process that was asked for: its environment, its folder, its program."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.setpriority(os.PRIO_PROCESS, 0, request["priority"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["open_files"]))
    if not request["as_it_is"]:
        os.execv(sys.executable, [sys.executable, *request["argv"]])
    # The children would all draw the same numbers; `random` sees to that itself.
    for generator in ("numpy.random", "torch.random"):
        if generator in sys.modules:
            sys.modules[generator].seed()
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


def serve(folder: Path, at_once: Iterable[str] = BEFORE_RAY, with_first: Iterable[str] = WITH_RAY) -> None:
    """Serve in a folder until standard input ends; the folder is removed then. In a child: be the worker.

    Args:
        at_once: modules to import now.
        with_first: in the environment of the first worker.
    """
    preload(at_once)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "bound"))
        listener.listen(64)
        (folder / "bound").rename(folder / SOCKET)  # who finds it is answered
        print("ready", flush=True)
        request = ForkServer(listener, with_first).serve()
    if request is not None:
        run_child(request)
    else:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
