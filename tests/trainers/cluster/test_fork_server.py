"""Ray's workers come from a process that has made the imports, or start by themselves; either way they are themselves."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainers.cluster.fork_server import OFF, SOCKET, start_fork_server, worker_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")

SERVER = "import pathlib, sys; from trainers.cluster.fork_server import serve; serve(pathlib.Path(sys.argv[1]), {}, {})"
TELL = """
import json, os, resource, sys
from ray._raylet import ObjectID
print(json.dumps({
    "imported": [name for name in sys.argv[1].split(",") if name in sys.modules], "argv": sys.argv, "cwd": os.getcwd(),
    "parent": os.getppid(), "own_group": os.getpgid(0) == os.getpid(), "path": sys.path[0], "name": __name__,
    "mine": os.environ.get("MINE"), "first": os.environ.get("FIRST"), "id": ObjectID.from_random().hex(),
    "priority": os.getpriority(os.PRIO_PROCESS, 0), "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
}))
sys.exit(int(sys.argv[2]))
"""
REST = "import sys; print('here', flush=True); sys.stdin.read()"
SEED = "from ray._raylet import ObjectID\nObjectID.from_random()\n"

Started = tuple[Path, "subprocess.Popen[str]"]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a server with modules to import at once and with the first worker; its folder and process."""
    started: list[subprocess.Popen[str]] = []

    def start(*modules: Any) -> Started:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVER.format(*(repr(m) for m in modules)), str(folder)]
        pipe = subprocess.PIPE
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        started.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", server.communicate()[1]
        return folder, server

    yield start
    for server in started:
        server.communicate(timeout=60)


def tell(folder: Path, script: Path, looked_for: str = "csv", status: int = 0, **environment: str) -> dict[str, Any]:
    """What a worker says of itself, and its exit status."""
    command = [*worker_command(folder), str(script), looked_for, str(status)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, cwd=script.parent, timeout=120,
        preexec_fn=_be_humble,
    )  # fmt: skip
    return json.loads(done.stdout or "{}") | {"status": done.returncode, "error": done.stderr}


def _be_humble() -> None:
    """As Ray does it with its workers."""
    os.nice(3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (333, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "tell.py"
    file.write_text(TELL)
    return file


def test_a_worker_is_forked_with_its_own_environment_folder_and_arguments(
    start_server: Callable[..., Started], script: Path
) -> None:
    folder, server = start_server(["tabnanny"], ["this"])
    first = tell(folder, script, "tabnanny,this,chunk", FIRST="yes", RAY_JOB_ID="01000000")
    second = tell(folder, script, "tabnanny,this,chunk", status=3, MINE="2", RAY_JOB_ID="01000000")
    assert first["imported"] == second["imported"] == ["tabnanny", "this"]
    assert first["parent"] == second["parent"] == server.pid
    assert (first["first"], second["first"], second["mine"]) == ("yes", None, "2")
    assert second["argv"] == [str(script), "tabnanny,this,chunk", "3"]
    assert second["cwd"] == second["path"] == str(script.parent)
    assert first["own_group"] and second["own_group"] and second["name"] == "__main__"
    assert (first["status"], second["status"]) == (0, 3)
    assert first["priority"] == os.getpriority(os.PRIO_PROCESS, 0) + 3 and first["open_files"] == 333
    assert first["id"] != second["id"]


def test_a_worker_of_another_ray_starts_by_itself(start_server: Callable[..., Started], script: Path) -> None:
    folder, _ = start_server(["tabnanny"], [])
    own, another = (tell(folder, script, "tabnanny", RAY_JOB_ID=job, MINE=job) for job in ("01000000", "02000000"))
    assert (own["imported"], own["mine"]) == (["tabnanny"], "01000000")
    assert (another["imported"], another["mine"], another["argv"]) == ([], "02000000", own["argv"])


def test_nothing_is_forked_once_an_import_has_seeded_rays_numbers(
    start_server: Callable[..., Started], script: Path, tmp_path: Path
) -> None:
    (tmp_path / "seeds_ray.py").write_text(SEED)
    folder, server = start_server([], ["seeds_ray"])
    found = tell(folder, script, "seeds_ray"), tell(folder, script, "seeds_ray")
    assert [each["imported"] for each in found] == [[], []]
    assert found[0]["id"] != found[1]["id"]
    assert server.communicate()[1] == "workers are not forked: an import has seeded Ray's random numbers\n"


def test_without_a_server_a_worker_starts_by_itself(script: Path, tmp_path: Path) -> None:
    found = tell(tmp_path, script, "tabnanny", status=4, MINE="1")
    assert (found["imported"], found["status"], found["mine"]) == ([], 4, "1")


def test_a_worker_that_the_server_cannot_take_starts_by_itself(script: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(2**20)
            connection.close()

        server = threading.Thread(target=hang_up)
        server.start()
        found = tell(tmp_path, script, "tabnanny", status=5, MINE="1")
        server.join()
    assert (found["imported"], found["status"], found["mine"]) == ([], 5, "1")


def test_who_asked_and_the_worker_end_together(start_server: Callable[..., Started], tmp_path: Path) -> None:
    folder, _ = start_server([], [])
    (tmp_path / "rest.py").write_text(REST)
    command = [*worker_command(folder), str(tmp_path / "rest.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        assert asked.stdout.readline() == "here\n"
        asked.send_signal(signal.SIGKILL)
        assert asked.stdout.read() == ""  # the worker held its end of the pipe open
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        assert asked.stdout.readline() == "here\n"
        children = Path(f"/proc/{_server_of(folder)}/task/{_server_of(folder)}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert asked.wait(60) == 128 + signal.SIGKILL


def _server_of(folder: Path) -> int:
    """The process that listens in a folder."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        if entry.read_bytes().endswith(f"{folder}\0".encode()):
            return int(entry.parent.name)
    raise AssertionError(f"nobody listens in {folder}")


def test_its_folder_goes_with_the_driver(start_server: Callable[..., Started]) -> None:
    folder, server = start_server([], [])
    assert (folder / SOCKET).is_socket()
    server.communicate(timeout=60)
    assert server.returncode == 0 and not folder.exists()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFF, "0")
    assert start_fork_server() == {}


@pytest.mark.slow
def test_what_ray_train_needs_is_imported_and_can_be_forked(start_server: Callable[..., Started], script: Path) -> None:
    from trainers.cluster.fork_server import BEFORE_RAY, WITH_RAY

    folder, server = start_server(BEFORE_RAY, WITH_RAY)
    needed = "torch,torchvision,ray.train.torch,ray.data,trainers.cluster.worker"
    found = [tell(folder, script, needed) for _ in range(2)]
    assert [each["imported"] for each in found] == [needed.split(","), needed.split(",")]
    assert found[0]["id"] != found[1]["id"]
    assert server.communicate()[1] == ""


def test_nothing_imported_at_once_imports_ray() -> None:
    from trainers.cluster.fork_server import BEFORE_RAY

    program = f"import sys, {', '.join(BEFORE_RAY)}; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
