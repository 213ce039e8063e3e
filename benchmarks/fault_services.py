"""What faults happen to beside the run itself: an MLflow server that goes away, a cluster of three nodes on one machine."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


class MlflowServer:
    """`mlflow server` on loopback, which can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
            self.process = None

    def what_it_has(self, run_name: str) -> str:
        """Epochs, metrics sent twice, and model versions of a run, in words."""
        from trainers.tracking.mlflow_run import open_client

        client = open_client(self.uri)
        experiment = client.get_experiment_by_name("m2can")
        (run,) = client.search_runs([experiment.experiment_id], f"tags.`m2can.run_name` = '{run_name}'")
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        twice = sum(len(rows) - len({row.step for row in rows}) for rows in histories.values())
        versions = [v for v in client.search_model_versions() if v.run_id == run.info.run_id]
        epochs = sorted(int(row.value) for row in histories["epoch"])
        return (
            f"MLflow has epochs {epochs}, {twice} metrics twice, {len(versions)} model version, run {run.info.status}"
        )


def set_token() -> None:
    """For this process and all that it starts; Ray reads it when it is imported."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def three_nodes() -> Iterator[Any]:
    """A cluster of a head with one CPU and two nodes with two CPUs each; a worker of 1.5 CPUs fits on either of these."""
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    # Three nodes on a few cores answer slowly; only a node that is killed shall count as lost.
    patience = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": patience},
    )
    reset_ray_address()  # it offers itself to every `ray.init` of this machine
    try:
        cluster.nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        cluster.wait_for_nodes()
        yield cluster
    finally:
        processes = psutil.Process().children(recursive=True)
        cluster.shutdown()
        psutil.wait_procs(processes, timeout=30)
