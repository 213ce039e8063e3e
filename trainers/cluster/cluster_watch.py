"""Whether Ray's head still answers: once it has died, Ray's own calls wait for a minute and then end the process."""

from __future__ import annotations

import sys
import time

import ray

from trainers.cluster.find_cluster import is_open
from trainers.cluster.local_cluster import owns_ray
from trainers.failures import RunFailed

ASKED_EVERY_S = 2.0
LOST_AFTER_S = 5.0
JOINED_LOST_AFTER_S = 45.0  # the head of a cluster that is joined may be started again; Ray gives up after 60 s


class LostCluster(RunFailed):
    """Ray's head does not answer any more."""


class ClusterWatch:
    """Asks the head of the Ray that runs, at `address`, whether it answers.

    A head that is silent from the beginning is not watched: not every machine that can use a cluster reaches it.
    """

    def __init__(self, address: str, lost_after_s: float) -> None:
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
            raise LostCluster(f"Ray's head at {self._address} does not answer for {silent:.0f} s")
        if silent >= LOST_AFTER_S and not self._told:
            self._told = True
            words = (
                f"Ray's head at {self._address} does not answer; the run waits until {self._lost_after_s:g} s are over"
            )
            print(f"note: {words}", file=sys.stderr, flush=True)

    def _answers(self) -> bool:
        return is_open(self._host.strip("[]"), self._port)


def watch_cluster() -> ClusterWatch:
    """The watch of the Ray that runs."""
    after_s = LOST_AFTER_S if owns_ray() else JOINED_LOST_AFTER_S
    return ClusterWatch(ray.get_runtime_context().gcs_address, after_s)
