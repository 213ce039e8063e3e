"""A head that died is spoken of and ends the wait; one that was never reached is not watched."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from trainers.cluster import cluster_watch
from trainers.cluster.cluster_watch import ClusterWatch, LostCluster


def test_a_head_that_falls_silent_is_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cluster_watch, "LOST_AFTER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = ClusterWatch(address, 0.3)
        time.sleep(0.4)
        watch.look()
    watch.look()
    time.sleep(0.15)
    watch.look()
    watch.look()
    told = f"note: Ray's head at {address} does not answer; the run waits until 0.3 s are over\n"
    assert capsys.readouterr().err == told
    time.sleep(0.25)
    with pytest.raises(LostCluster, match=rf"^Ray's head at {address} does not answer for 0 s$"):
        watch.look()


def test_a_head_that_is_not_reached_from_here_is_not_watched() -> None:
    watch = ClusterWatch("127.0.0.1:9", 0.0)
    watch.look()
    watch.look()
    assert not watch._watches


WAITS_FOR_RAY = """
import socket, threading
from trainers.cluster import cluster_watch
head = socket.create_server(("127.0.0.1", 0))
watch = cluster_watch.ClusterWatch(f"127.0.0.1:{head.getsockname()[1]}", 0.0)
head.close()
cluster_watch.watch_cluster = lambda: [watch]
cluster_watch.ASKED_EVERY_S = 0.05
with cluster_watch.end_with_cluster(lambda: print("closed", flush=True)):
    threading.Event().wait()
"""


def test_a_process_that_waits_for_a_ray_that_died_is_closed_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", WAITS_FOR_RAY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "closed\n")
    assert done.stderr.startswith("m2can: Ray's head at 127.0.0.1:")
    assert done.stderr.endswith("Give the command again: a run goes on from its last checkpoint\n")
