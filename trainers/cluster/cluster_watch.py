"""Whether Ray still answers: once its head has died, Ray's own calls wait for a minute and then end the process; once its
raylet has died, they end it at their next turn."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import ray

from datasets_manifest.errors import without_password
from trainers.cluster.find_cluster import is_open
from trainers.cluster.local_cluster import owns_ray
from trainers.cluster.session_cleaner import keep_logs, kill_own_ray
from trainers.failures import RunFailed

ASKED_EVERY_S = 2.0
LOST_AFTER_S = 5.0
JOINED_LOST_AFTER_S = 45.0  # the head of a cluster that is joined may be started again; Ray gives up after 60 s


class LostCluster(RunFailed):
    """A part of Ray does not answer any more."""


class ClusterWatch:
    """Asks a part of the Ray that runs, at `address`, whether it answers.

    A part that is silent from the beginning is not watched: not every machine that can use a cluster reaches it.

    Args:
        part: what it is called.
    """

    def __init__(self, address: str, lost_after_s: float, part: str = "head") -> None:
        self._part = part
        self._host, _, port = address.rpartition(":")
        self._address, self._port, self._lost_after_s = address, int(port), lost_after_s
        self._told, self._heard = False, time.monotonic()
        self._watches = self._answers()

    def look(self) -> None:
        """Raises LostCluster: it was silent for too long."""
        if not self._watches or self._answers():
            self._told, self._heard = False, time.monotonic()
            return
        silent = time.monotonic() - self._heard
        if silent >= self._lost_after_s:
            raise LostCluster(f"Ray's {self._part} at {self._address} does not answer for {silent:.0f} s")
        if silent >= LOST_AFTER_S and not self._told:
            self._told = True
            words = f"Ray's {self._part} at {self._address} does not answer; the run waits until "
            words += f"{self._lost_after_s:g} s are over"
            print(f"note: {words}", file=sys.stderr, flush=True)

    def _answers(self) -> bool:
        return is_open(self._host.strip("[]"), self._port)


def watch_cluster() -> list[ClusterWatch]:
    """The watches of the Ray that runs: of its head, and of the raylet of one that this process started."""
    head = ray.get_runtime_context().gcs_address
    if not owns_ray():
        return [ClusterWatch(head, JOINED_LOST_AFTER_S)]
    raylets = [f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in ray.nodes() if node["Alive"]]
    return [ClusterWatch(head, LOST_AFTER_S), *(ClusterWatch(each, LOST_AFTER_S, "raylet") for each in raylets)]


def ended_by_ray(why: str) -> RunFailed:
    """What a command ends with once Ray has died. What is left of a Ray of its own is ended; its logs stay."""
    logs = "".join(f"; Ray's logs: {folder}" for folder in keep_logs())
    kill_own_ray()
    return RunFailed(f"{why}{logs}. Give the command again: a run goes on from its last checkpoint")


@contextlib.contextmanager
def end_with_cluster(close: Callable[[], None]) -> Iterator[None]:
    """End this process, with a line, once Ray has died.

    For calls of Ray that cannot be left: they would wait for a minute and then end the process themselves.

    Args:
        close: called before the end, in another thread.
    """
    over = threading.Event()
    watches = watch_cluster()

    def watch() -> None:
        try:
            while not over.wait(ASKED_EVERY_S):
                for each in watches:
                    each.look()
        except LostCluster as error:
            failed = ended_by_ray(str(error))
            with contextlib.suppress(Exception):  # the line below is what matters
                close()
            print(f"m2can: {without_password(str(failed))}", file=sys.stderr, flush=True)
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True, name="m2can-cluster-watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
