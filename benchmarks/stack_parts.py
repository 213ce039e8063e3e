"""The compose stack's parts as processes of this machine; each ends by its own id."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from deploy.locked import ROOT
from deploy.make_secrets import MLFLOW_USER, make

BIN = Path(sys.executable).parent
MODEL = "m2can-stack"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Stack:
    """Processes and their addresses; everything lies below `folder`."""

    def __init__(self, folder: Path, mlflow_python: Path) -> None:
        self.folder, self.mlflow_python = folder, mlflow_python
        self.secrets = folder / "secrets"
        self.data = folder / "data"
        self.data.mkdir()
        make(self.secrets)
        self.started: dict[str, float] = {}
        self._ended = contextlib.ExitStack()
        token = str(self.secrets / "ray_token")
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
            "MLFLOW_TRACKING_PASSWORD": self.secret("mlflow_admin_password"),
        }
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            self.environment.pop(name, None)

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    def start(self, name: str, command: list[str], ready: Callable[[], bool], **options: Any) -> None:
        """A process that is there when this returns; its output goes to <folder>/<name>.log."""
        began = time.monotonic()
        log = (self.folder / f"{name}.log").open("w")
        merged: dict[str, Any] = {"env": self.environment, "start_new_session": True, **options}
        process: subprocess.Popen[bytes] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **merged)
        self._ended.callback(self._end, process)
        while not ready():
            if process.poll() is not None or time.monotonic() - began > 180:
                raise RuntimeError(f"{name} did not start:\n{(self.folder / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.25)
        self.started[name] = round(time.monotonic() - began, 1)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL to what is left of the process's own group."""
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def store(self) -> str:
        """An S3 server in this process, with the bucket; its address."""
        from moto.server import ThreadedMotoServer

        began = time.monotonic()
        (port,) = free_ports(1)
        server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        server.start()
        self._ended.callback(server.stop)
        address = f"http://127.0.0.1:{port}"
        more = {"ARTIFACTS": "s3://mlflow", "MLFLOW_S3_ENDPOINT_URL": address, "SECRETS": str(self.secrets)}
        command = [sys.executable, str(ROOT / "deploy/mlflow/make_bucket.py")]
        subprocess.run(command, env=self.environment | more, check=True, capture_output=True)
        self.started["S3 store"] = round(time.monotonic() - began, 1)
        return address

    def database(self) -> dict[str, str] | None:
        """PostgreSQL's place as its client's variables; None where there is no server or no driver."""
        if not shutil.which("initdb") or not shutil.which("postgres") or not self.mlflow_has("psycopg2"):
            return None
        place, (port,) = Path(tempfile.mkdtemp(prefix="m2pg")), free_ports(1)
        self._ended.callback(shutil.rmtree, place, ignore_errors=True)
        options: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(place, owner.pw_uid, owner.pw_gid)
            options = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        password = place / "password"
        password.write_text(self.secret("postgres_password"))
        if options:
            os.chown(password, options["user"], options["group"])
        made = ["initdb", "-D", str(place / "data"), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run(made, check=True, capture_output=True, cwd=place, **options)
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGDATABASE": "postgres"}
        command = ["postgres", "-D", str(place / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(place)]
        self.start("PostgreSQL", command, lambda: _listens(port), cwd=place, **options)
        return where

    def mlflow_has(self, module: str) -> bool:
        return subprocess.run([str(self.mlflow_python), "-c", f"import {module}"], capture_output=True).returncode == 0

    def mlflow(self, store: str, database: dict[str, str] | None) -> str:
        """MLflow's server as deploy/mlflow/start.sh starts it, or without basic-auth where that is not installed."""
        (port,) = free_ports(1)
        address = f"http://127.0.0.1:{port}"
        environment = self.environment | {
            "PATH": f"{self.mlflow_python.parent}{os.pathsep}{os.environ['PATH']}",
            "SECRETS": str(self.secrets),
            "ARTIFACTS": "s3://mlflow",
            "MLFLOW_S3_ENDPOINT_URL": store,
            "ALLOWED_HOSTS": f"127.0.0.1:{port}",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WORKERS": "1",
            **(database or {}),
        }
        environment.pop("PYTHONPATH")
        backend = f"sqlite:///{self.folder / 'mlflow.db'}"
        command = ["sh", str(ROOT / "deploy/mlflow/start.sh")]
        if database is None:
            config = self.folder / "basic_auth.ini"
            text = (ROOT / "deploy/mlflow/basic_auth.ini").read_text()
            config.write_text(text.replace("postgresql+psycopg2://", f"sqlite:///{self.folder / 'auth.db'}"))
            environment |= {"MLFLOW_BACKEND_STORE_URI": backend, "MLFLOW_AUTH_CONFIG_PATH": str(config)}
        if not self.mlflow_has("flask_wtf"):
            keys = {"AWS_ACCESS_KEY_ID": "s3_access_key", "AWS_SECRET_ACCESS_KEY": "s3_secret_key"}
            environment |= {name: self.secret(file) for name, file in keys.items()}
            environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            environment.setdefault("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg2://")
            environment["PGPASSWORD"] = self.secret("postgres_password")
            command = [
                "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", "s3://mlflow",
                "--serve-artifacts", "--allowed-hosts", f"127.0.0.1:{port}", "--workers", "1",
            ]  # fmt: skip
        self.start("MLflow", command, lambda: _answers(f"{address}/health"), env=environment, cwd=self.folder)
        return address

    def ray(self, tracking: str) -> tuple[str, str]:
        """A head and a worker node; (address of the cluster, address of its job server)."""
        self.environment["MLFLOW_TRACKING_URI"] = tracking
        gcs, board, client, *agents = free_ports(9)
        # Short, for the sockets' paths; one a node: nodes that share it take each other's copies of a job's code away.
        place, other = tempfile.mkdtemp(prefix="m2r"), tempfile.mkdtemp(prefix="m2w")
        for folder in (place, other):
            self._ended.callback(shutil.rmtree, folder, ignore_errors=True)
        common = ["--block", "--num-cpus=2", "--object-store-memory=400000000", "--disable-usage-stats"]

        def ports(three: list[int]) -> list[str]:
            listen, grpc, metrics = three
            return [
                f"--dashboard-agent-listen-port={listen}",
                f"--dashboard-agent-grpc-port={grpc}",
                f"--metrics-export-port={metrics}",
            ]

        head = [
            str(BIN / "ray"), "start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}",
            f"--ray-client-server-port={client}", f"--temp-dir={place}", "--node-ip-address=127.0.0.1",
            *common, *ports(agents[:3]),
        ]  # fmt: skip
        worker = [
            str(BIN / "ray"),
            "start",
            f"--address=127.0.0.1:{gcs}",
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={other}",
            *common,
        ]
        jobs = f"http://127.0.0.1:{board}"
        bearer = {"Authorization": f"Bearer {self.secret('ray_token')}"}
        self.start("Ray head", head, lambda: _answers(f"{jobs}/api/jobs/", bearer))
        self.start("Ray worker", [*worker, *ports(agents[3:])], lambda: _alive_nodes(jobs, bearer) == 2)
        return f"127.0.0.1:{gcs}", jobs

    def api(self, jobs: str, tracking: str) -> str:
        (port,) = free_ports(1)
        command = [
            str(BIN / "m2can"), "api", "--port", str(port), "--tokens", str(self.secrets / "api_tokens.yaml"),
            "--root", str(self.data), "--address", jobs, "--tracking-uri", tracking, "--storage", str(self.data / "runs"),
            "--rate", "20",
        ]  # fmt: skip
        self.start("control plane", command, lambda: _answers(f"http://127.0.0.1:{port}/healthz"))
        return f"http://127.0.0.1:{port}"

    def serve(self, cluster: str, tracking: str) -> str:
        (port,) = free_ports(1)
        command = [
            str(BIN / "m2can"), "serve", f"{MODEL}@champion", "--port", str(port), "--address", cluster,
            "--tokens", str(self.secrets / "api_tokens.yaml"), "--tracking-uri", tracking,
        ]  # fmt: skip
        self.start("m2can serve", command, lambda: _answers(f"http://127.0.0.1:{port}/readyz"))
        return f"http://127.0.0.1:{port}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(address: str, headers: dict[str, str] | None = None) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(address, headers=headers, timeout=30).status_code == 200
    return False


def _alive_nodes(jobs: str, headers: dict[str, str]) -> int:
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
        summary = httpx.get(f"{jobs}/nodes?view=summary", headers=headers, timeout=30).json()["data"]["summary"]
        return sum(node["raylet"]["state"] == "ALIVE" for node in summary)
    return 0
