"""Load on `m2can serve`: requests a second, latency, errors; wrong and lost answers, with a promotion in the middle.

    python -m benchmarks.serving [--requests 2000] [--concurrency 1 16 32 64] [--out benchmarks/results/serving.json]

Two versions of a small model are trained on the generated data set, registered and served by `m2can serve`, a process of
its own, once with Ray Serve and once with `--local`. Every answer is compared with what the named version predicts in this
process, to 1e-5; where there is a GPU, which answers in bf16, to 0.02 (that has never run). In the middle of every level the
served alias moves to the other version, by `m2can models`'s own function.
`cpu_ms`: processor time a request, of the command and all processes that it started.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import psutil
import torch

from benchmarks.loops import one_worker
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.readers import read_split
from services.promotion import promote
from trainers.model.card import model_folder
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import prepare
from trainers.recipe.demo import demo_recipe
from trainers.tracking.address import resolve_tracking_uri
from trainers.tracking.mlflow_run import RunLink, open_client
from trainers.tracking.registration import ModelToLog, register, signature_for

NAME, ALIAS = "m2can-serving", "champion"
TOLERANCE = 0.02 if torch.cuda.is_available() else 1e-5  # of a probability; on a GPU models may answer in bf16


def register_versions(folder: Path) -> tuple[list[Path], Path]:
    """Bundles of version 1 and 2 (one and two epochs), and a manifest to ask with."""
    manifests = write_postcards(folder / "postcards", train=60, val=60)
    prepared = prepare(demo_recipe(manifests, [f"run.storage={folder / 'runs'}", "train.epochs=2", "run.name=serving"]))
    loop = one_worker(prepared)
    uri, bundles = resolve_tracking_uri(None, folder / "runs"), []
    for epoch in (1, 2):
        loop.run_epoch()
        loop.save(folder / f"checkpoint-{epoch}", {"kept_rows": torch.from_numpy(loop.pseudo_labels.rows)})
        bundles.append(model_folder(folder / f"checkpoint-{epoch}"))
        link = RunLink.open(uri, "m2can", folder / "runs", f"serving-{epoch}", {})
        register(link, ModelToLog(bundles[-1], NAME, signature=signature_for(prepared.card.classes)))
    return bundles, list(manifests.values())[-1]


@contextlib.contextmanager
def server(storage: Path, *options: str) -> Any:
    """`m2can serve` in a process of its own, its address and the seconds until it was ready; ended by its id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "services.cli.main",
        "serve",
        f"{NAME}@{ALIAS}",
        "--port",
        str(port),
        "--rate",
        "100000",
    ]
    process = subprocess.Popen([*command, *options, "--storage", str(storage)], start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/readyz", timeout=30).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() - started > 300:
                raise RuntimeError("the server did not become ready")
            time.sleep(0.5)
        yield address, time.monotonic() - started, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def cpu_seconds(server: psutil.Process) -> float:
    """Processor time of the command and everything it started, Ray's processes included."""
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def level(
    address: str,
    server: psutil.Process,
    bodies: list[bytes],
    wanted: dict[str, np.ndarray],
    concurrency: int,
    requests: int,
    move: Any,
) -> dict[str, Any]:
    """`requests` requests, `concurrency` at a time; after half of them `move` is called."""
    numbers, seconds = iter(range(requests)), []
    statuses: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    headers = {"Content-Type": "application/json"}
    wrong = 0

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal wrong
        for number in numbers:
            if number == requests // 2:
                await asyncio.to_thread(move)
            row = number % len(bodies)
            started = time.perf_counter()
            try:
                async with session.post(f"/v1/models/{NAME}/predict", data=bodies[row], headers=headers) as response:
                    content = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                statuses[type(error).__name__] += 1
                continue
            seconds.append(time.perf_counter() - started)
            statuses[str(response.status)] += 1
            if response.status == 200:
                answer = json.loads(content)
                version = answer["model"]["version"]
                versions[version] += 1
                probs = np.array(list(answer["predictions"][0]["probs"].values()))
                wrong += bool(np.abs(probs - wanted[version][row]).max() > TOLERANCE)

    limit, timeout = aiohttp.TCPConnector(limit=concurrency), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(address, connector=limit, timeout=timeout) as session:
        used, started = cpu_seconds(server), time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(concurrency)))
        elapsed, used = time.perf_counter() - started, cpu_seconds(server) - used
    p50, p95, p99 = (1000 * np.percentile(seconds, [50, 95, 99])).round(1).tolist()
    return {
        "concurrency": concurrency,
        "requests": requests,
        "answers": sum(statuses.values()),
        "requests_per_s": round(requests / elapsed, 1),
        "cpu_ms": round(1000 * used / requests, 2),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "errors": requests - statuses["200"],
        "wrong": wrong,
        "statuses": dict(statuses),
        "versions": dict(versions),
    }


def run(requests: int, concurrencies: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="m2can-serving-") as place:
        folder = Path(place)
        bundles, manifest = register_versions(folder)
        client = open_client(resolve_tracking_uri(None, folder / "runs"))
        promote(client, f"{NAME}:1", ALIAS, by="benchmark")
        rows = read_split(load_manifest(manifest), "val").table.select(["texts", "images"]).to_pylist()
        texts, images = [row["texts"] for row in rows], [row["images"] for row in rows]
        wanted = {str(n + 1): Predictor.load(b, "cpu").predict(texts, images).probs for n, b in enumerate(bundles)}
        bodies = [
            json.dumps(
                {"text": text, "images": [base64.b64encode(Path(p).read_bytes()).decode() for p in paths]}
            ).encode()
            for text, paths in zip(texts, images, strict=True)
        ]
        levels, start_s = [], {}
        for side, options in {"Ray Serve": (), "one process": ("--local",)}.items():
            with server(folder / "runs", *options) as (address, seconds, process):
                start_s[side] = round(seconds, 1)
                asyncio.run(level(address, process, bodies, wanted, 4, 40, lambda: None))  # warm
                for number, concurrency in enumerate(concurrencies):
                    to = "2" if number % 2 == 0 else "1"

                    def move(to: str = to) -> None:
                        promote(client, f"{NAME}:{to}", ALIAS, by="benchmark")

                    found = asyncio.run(level(address, process, bodies, wanted, concurrency, requests, move))
                    levels.append({"side": side, **found})
        return {
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "start_s": start_s,
            "load_1min": os.getloadavg()[0],
            "levels": levels,
        }


def table(result: dict[str, Any]) -> str:
    columns = (
        "side",
        "concurrency",
        "requests_per_s",
        "cpu_ms",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "errors",
        "wrong",
        "versions",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[name]) for name in columns) + " |" for row in result["levels"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of each level")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    arguments = parser.parse_args()
    result = run(arguments.requests, arguments.concurrency)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draft = arguments.out.with_suffix(".draft")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(draft, arguments.out)
    print(table(result))


if __name__ == "__main__":
    main()
