"""Which cluster is joined, what is said when nobody answers there, and what keeps a Ray from starting here."""

from __future__ import annotations

import resource
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from datasets_manifest.errors import InputError
from services import doctor
from trainers.cluster import find_cluster as finding
from trainers.cluster.find_cluster import Found, find_cluster, require_answer
from trainers.preflight import ray_needs
from trainers.preflight.ray_needs import lacks, require_ray_can_start


@pytest.fixture(autouse=True)
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in which Ray would look; pytest's own are too deep for sockets."""
    with tempfile.TemporaryDirectory(prefix="m2r", dir="/tmp") as folder:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def write_state(folder: Path, address: str) -> None:
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)


@pytest.mark.parametrize(
    ("address", "variable", "state", "joined", "origin"),
    [
        (None, None, None, None, ""),
        ("auto", None, None, None, ""),
        ("a:1", "b:2", "c:3", "a:1", "cluster.address"),
        (None, "b:2", "c:3", "b:2", "RAY_ADDRESS"),
        ("auto", "b:2", "c:3", "b:2", "RAY_ADDRESS"),
        (None, None, "c:3\n", "c:3", "ray_current_cluster"),
        (None, "auto", "c:3", "c:3", "ray_current_cluster"),
        ("local", "b:2", "c:3", None, ""),
        (None, "local", "c:3", None, ""),
        (None, None, "", None, ""),
    ],
)
def test_the_nearest_address_counts(
    ray_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    variable: str | None,
    state: str | None,
    joined: str | None,
    origin: str,
) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    if state is not None:
        write_state(ray_folder, state)
    found = find_cluster(address)
    assert (found.address if found else None) == joined
    assert origin in (found.origin if found else "")


def test_another_command_s_private_ray_is_not_joined(ray_cluster: None) -> None:
    """The session's Ray runs on this machine; Ray's own `auto` would find its processes."""
    assert find_cluster(None) is None
    assert find_cluster("auto") is None


def refused(found: Found, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    monkeypatch.setattr(finding, "TOLD_AFTER_S", 0.2)
    monkeypatch.setattr(finding, "GIVEN_UP_AFTER_S", 1.0)
    told: list[str] = []
    with pytest.raises(InputError) as caught:
        require_answer(found, told.append)
    return str(caught.value), told


def test_where_nobody_answers_the_address_s_origin_is_told_then_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error, told = refused(Found(address, "RAY_ADDRESS"), monkeypatch)
    assert told == [f"waiting for a Ray cluster at {address}; the address comes from RAY_ADDRESS"]
    assert f"no Ray cluster answers for 1 s; the address comes from RAY_ADDRESS; found '{address}'" in error


def test_a_server_that_hangs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepted by the kernel, answered by nobody
        error, _ = refused(Found(f"127.0.0.1:{hanging.getsockname()[1]}", "RAY_ADDRESS"), monkeypatch)
    assert "no Ray cluster answers" in error


def test_a_cluster_that_starts_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    starting = threading.Timer(0.5, server.start)
    starting.start()
    try:
        require_answer(Found(f"127.0.0.1:{port}", "RAY_ADDRESS"), lambda words: None)
        require_answer(Found(f"ray://localhost:{port}", "RAY_ADDRESS"), lambda words: None)
    finally:
        starting.join()
        server.stop(None)


@pytest.mark.parametrize("address", ["head", "http://head:8265", "head:port", ":6379", "user@head:6379"])
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match=r"is not a Ray cluster's address; it comes from a file.*HOST:PORT"):
        require_answer(Found(address, "a file"), lambda words: None)


def ray_finding() -> str:
    return "".join(f"{f.found} → {f.advice}" for f in doctor._ray_needs() if f.level == "problem")


def test_here_ray_can_start() -> None:
    assert list(lacks()) == [] and ray_finding() == ""
    require_ray_can_start()


def test_a_temporary_folder_too_deep_for_sockets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 100}")
    with pytest.raises(InputError, match=r"TMPDIR: Ray cannot start: its sockets' paths.*RAY_TMPDIR=/tmp"):
        require_ray_can_start()
    assert "TMPDIR" in ray_finding()


def test_a_home_that_is_missing_or_no_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    (tmp_path / "file").touch()
    for home in (tmp_path / "missing", tmp_path / "file"):
        monkeypatch.setenv("HOME", str(home))
        with pytest.raises(InputError, match="HOME: Ray cannot start: the home folder cannot be written"):
            require_ray_can_start()
        assert str(home) in ray_finding()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given: nothing is written to the home folder")
    require_ray_can_start()


def test_a_user_without_name_and_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("HOME")

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(ray_needs.pwd, "getpwuid", unknown)
    with pytest.raises(InputError, match=r"HOME: Ray cannot start: the user has neither a name nor a home.*user id"):
        require_ray_can_start()


def test_too_few_file_handles_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(InputError, match=r"ulimit -n: Ray cannot start: allows too few open files.*'256'.*1024"):
        require_ray_can_start()


def test_a_temporary_folder_that_cannot_be_written_is_told(ray_folder: Path) -> None:
    (ray_folder / "ray").touch()
    with pytest.raises(InputError, match=r"RAY_TMPDIR: Ray cannot start: its temporary folder cannot be written"):
        require_ray_can_start()
