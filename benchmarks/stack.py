"""The compose stack's parts as processes of this machine, driven end to end:  python -m benchmarks.stack

    Ray head + worker node (token) · `mlflow server` (basic-auth on PostgreSQL) · an S3 server · `m2can api` · `m2can serve`
    check data → submit train → submit tune → look up → promote → serve → predict

MLflow's server starts by deploy/mlflow/start.sh, with secrets by deploy/make_secrets.py. Its Python may be another one
(--mlflow-python), with the packages of deploy/mlflow/requirements.lock; where Flask-WTF is missing the server runs without
basic-auth, where PostgreSQL or its driver is missing on SQLite, and the result says so. Every process ends by its own id.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.stack_parts import BIN, MODEL, Stack
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from deploy.commands import commands

SMALL = {
    "pictures": {"resize": 54, "crop": 48},
    "texts": {"max_tokens": 64},
}


class Driver:
    """Somebody with a token of the control plane; every step's time is kept."""

    def __init__(self, address: str, token: str) -> None:
        self.steps: list[dict[str, Any]] = []
        self._client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=120)

    @contextlib.contextmanager
    def step(self, name: str, through: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.steps.append({"step": name, "through": through, "seconds": round(time.monotonic() - began, 1)})
        print(f"{name:24} {self.steps[-1]['seconds']:6.1f} s", flush=True)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self._client.request(method, path, **body)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def job(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Submit a job and see it to its end."""
        job: dict[str, Any] = self.ask("POST", path, json=body)
        while job["ended"] is None:
            time.sleep(0.5)
            job = self.ask("GET", f"/v1/jobs/{job['id']}")
        if job["status"] != "SUCCEEDED":
            log = self._client.get(f"/v1/jobs/{job['id']}/logs").text
            raise RuntimeError(f"{job}\n{log[-3000:]}")
        return job


def recipe(manifests: list[Path], epochs: int) -> dict[str, Any]:
    return {
        "data": {"sources": [str(path) for path in manifests[:-1]], "target": str(manifests[-1]), **SMALL},
        "encoders": {"text": {"name": "tiny"}, "picture": {"name": "tiny:8"}},
        "sam": {"rho": 0},
        "train": {"epochs": epochs, "batch_size": 8},
        "cluster": {"workers": 2},
        "tracking": {"register_as": MODEL},
    }


def drive(stack: Stack, driver: Driver, cluster: str, tracking: str, epochs: int) -> None:
    """All steps. Raises RuntimeError: one of them failed."""
    manifests = [path.resolve() for path in write_postcards(stack.data / "postcards", train=60, val=30).values()]
    with driver.step("check data", "API"):
        driver.job("/v1/data/check", {"manifests": [str(path) for path in manifests]})
    with driver.step("submit train", "API"):
        driver.job("/v1/jobs", {"recipe": recipe(manifests, epochs)})
    if "tune" in commands():
        with driver.step("submit tune", "API"):
            sweep = {"name": "stack", "trials": 2, "space": {"uacr.start": {"choices": [0.2, 0.4]}}}
            driver.job("/v1/sweeps", {"sweep": sweep, "recipe": recipe(manifests, 1)})
    with driver.step("look up", "API"):
        version = driver.ask("GET", f"/v1/models/{MODEL}")["version"]
    with driver.step("look up", "command"):
        command = [str(BIN / "m2can"), "models", "show", f"{MODEL}:{version}", "--json", "--tracking-uri", tracking]
        shown = json.loads(subprocess.run(command, env=stack.environment, check=True, capture_output=True).stdout)
    if shown["version"] != version or "m2can.files_sha256" not in shown["tags"]:
        raise RuntimeError(f"the command shows another version: {shown}")
    with driver.step("promote", "API"):
        driver.ask("POST", f"/v1/models/{MODEL}/promote", json={"version": version})
    with driver.step("serve until ready", "command"):
        address = stack.serve(cluster, tracking)
    row = read_split(load_manifest(manifests[-1]), "val").table.slice(0, 1).to_pylist()[0]
    images = [base64.b64encode(Path(path).read_bytes()).decode() for path in row["images"]]
    path = f"{address}/v1/models/{MODEL}/predict"
    body = {"text": row["texts"], "images": images}
    with driver.step("predict", "HTTP"):
        bearer = {"Authorization": f"Bearer {stack.secret('operator_token')}"}
        answer = httpx.post(path, json=body, headers=bearer, timeout=60).json()
    if answer["model"]["version"] != version or answer["predictions"][0]["label"] not in shown_classes(manifests[-1]):
        raise RuntimeError(f"not a prediction of the promoted version: {answer}")
    if httpx.post(path, json=body).status_code != 401:
        raise RuntimeError("the inference service answers without a token")


def shown_classes(manifest: Path) -> list[str]:
    return list(load_manifest(manifest).classes)


def run(mlflow_python: Path, epochs: int, keep: Path | None) -> dict[str, Any]:
    with contextlib.ExitStack() as after:
        folder = keep or Path(
            after.enter_context(tempfile.TemporaryDirectory(prefix="m2s", ignore_cleanup_errors=True))
        )
        stack = after.enter_context(Stack(folder, mlflow_python))
        began = time.monotonic()
        database = stack.database()
        tracking = stack.mlflow(stack.store(), database)
        cluster, jobs = stack.ray(tracking)
        address = stack.api(jobs, tracking)
        refused = {
            "control plane": httpx.get(f"{address}/v1/jobs").status_code,
            "Ray's job server": httpx.get(f"{jobs}/api/jobs/").status_code,
            "MLflow": httpx.post(f"{tracking}/api/2.0/mlflow/experiments/search", json={"max_results": 1}).status_code,
        }
        driver = Driver(address, stack.secret("operator_token"))
        drive(stack, driver, cluster, tracking, epochs)
        return {
            "cores": os.cpu_count(),
            "load_1min": round(os.getloadavg()[0], 1),
            "store": "PostgreSQL" if database else "SQLite",
            "basic_auth": stack.mlflow_has("flask_wtf"),
            "without_token": refused,
            "epochs": epochs,
            "started": stack.started,
            "steps": driver.steps,
            "whole_s": round(time.monotonic() - began, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlflow-python", type=Path, default=Path(sys.executable), help="of the MLflow server")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="new folder for logs and data, which stays")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stack.json"))
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    result = run(arguments.mlflow_python, arguments.epochs, arguments.keep)
    draft = arguments.out.with_suffix(".draft")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(draft, arguments.out)


if __name__ == "__main__":
    main()
