"""A Ray cluster to work on: the one that is asked for, that of `ray start`, or one that is started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from datasets_manifest.errors import InputError, first_line
from trainers.cluster.find_cluster import find_cluster, require_answer
from trainers.cluster.session_cleaner import clean_up_after, kill_own_ray
from trainers.failures import RunFailed
from trainers.preflight.ray_needs import ray_temp_folder, require_ray_can_start

# Settings of Ray Train. On one machine nobody takes nodes away, so that no process needs to watch for it, and looking at
# the workers twice a second costs nothing.
LOCAL_TRAIN = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
_own_sessions: set[str] = set()


def start_ray(address: str | None) -> bool:
    """Join the cluster that is named, or that `ray start` made here; else start one. True if it was started.

    Without an address RAY_ADDRESS counts; `local` always starts one.

    Raises:
        InputError: no cluster answers there, or this machine lacks what Ray needs.
    """
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "configure_logging": False}
    found = find_cluster(address)
    try:
        if found is None:
            require_ray_can_start()
            start_own_ray(**quiet)
            return True
        require_answer(found, lambda words: print(f"note: {words}", file=sys.stderr, flush=True))
        with _signals_stay():
            ray.init(address=found.address, **quiet)
    except ConnectionError as error:
        problem = f"no Ray cluster answers ({first_line(error)})"
        raise InputError(problem, field="cluster.address", value=found and found.address) from None
    finally:
        hide_token()
    return False


def start_own_ray(**options: Any) -> None:
    """Start a Ray for this process alone; `options` are those of `ray.init`."""
    for name, value in (LOCAL_TRAIN | kept_processes(options.get("num_cpus") or os.cpu_count() or 1)).items():
        os.environ.setdefault(name, value)
    with _signals_stay():
        _start_patiently(options)
    session = ray.get_runtime_context().get_session_name()
    _own_sessions.add(session)
    clean_up_after(ray_temp_folder() / "ray" / session)


def kept_processes(node_cpus: float) -> dict[str, str]:
    """The setting of a node of Ray with which processes that wait for a task stay.

    Ray ends them after a second where a node has more processes than CPUs. Workers and their pipelines count, so that on a
    node of few CPUs each data task would start a process, which takes longer than the task.
    """
    return {"RAY_num_workers_soft_limit": str(max(1, int(8 * node_cpus)))}


def _start_patiently(options: dict[str, Any]) -> None:
    """Start a Ray; on a busy machine its processes may take longer than the half minute that Ray gives them.

    Raises:
        RunFailed: twice.
    """
    for last in (False, True):
        try:
            ray.init("local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray has no type of its own for it
            if "timed out during startup" not in str(error):
                raise
            for session in (ray_temp_folder() / "ray").glob(f"session_*_{os.getpid()}"):
                clean_up_after(session)
            kill_own_ray()
            ray.shutdown()
            if last:
                raise RunFailed("Ray did not start within half a minute, twice: this machine is too busy") from error
            print("note: Ray did not start within half a minute; once more", file=sys.stderr, flush=True)


def owns_ray() -> bool:
    """Whether the Ray that runs was started by this process, for itself alone."""
    return ray.get_runtime_context().get_session_name() in _own_sessions


@contextlib.contextmanager
def _signals_stay() -> Iterator[None]:
    """A command's handler of SIGTERM stays; Ray puts one in its place that exits with code 15.

    Processes started here live on when the terminal closes: workers have a checkpoint to write then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup, end = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, hangup)
        if callable(end):
            signal.signal(signal.SIGTERM, end)


def hide_token() -> None:
    """Ray writes its token of authentication so that every user of the machine can read it."""
    with contextlib.suppress(OSError, RuntimeError):  # a user without a home folder
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        token.chmod(0o600)
