"""`m2can serve` as a process: what happens to requests under way when it is asked to end, and to half requests."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.stack_parts import free_ports
from services import promotion
from services.drift.sample import read_sample
from tests.services.registered import NAME, Registered
from tests.services.serving.test_serving import PREDICT, as_json, probs_of, records
from trainers.model.predictor import Predictor
from trainers.model.reference import fingerprint

pytestmark = pytest.mark.slow


@contextmanager
def serving(registered: Registered, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "services.cli.main", "serve", f"{NAME}@ended", "--port", str(port), *options]
    process = subprocess.Popen([*command, "--storage", str(registered.storage)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line)
        assert f"http://127.0.0.1:{port}" in line
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


async def in_flight(client: httpx.AsyncClient) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("m2can_in_flight "))


async def end_under_load(process: subprocess.Popen[str], address: str, registered: Registered) -> list[httpx.Response]:
    """32 requests at once, SIGTERM in their middle; their answers, and that of one that comes late."""
    body = {"samples": [as_json(row) for row in records(registered)[:8]]}
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=64)) as client:
        assert (await client.post(PREDICT, json=body)).status_code == 200  # the version is loaded
        asked = [asyncio.create_task(client.post(PREDICT, json=body)) for _ in range(32)]
        while await in_flight(client) < 16:
            assert not all(task.done() for task in asked)
        process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*asked)


@pytest.mark.parametrize("options", [("--local",), ()], ids=["local", "ray"])
def test_requests_under_way_are_answered_when_it_ends(
    registered: Registered, options: tuple[str, ...], tmp_path: Path
) -> None:
    promotion.promote(registered.client, f"{NAME}:1", "ended")
    rows = records(registered)[:8]
    predictor = Predictor.load(registered.bundles[0])
    wanted = predictor.predict([r["texts"] for r in rows], [r["images"] for r in rows]).probs
    sample = tmp_path / "sample.parquet"
    sampled = ("--sample", str(sample)) if "--local" in options else ()
    with serving(registered, *options, *sampled) as (process, address):
        answers = asyncio.run(end_under_load(process, address, registered))
        process.wait(60)
    statuses = [answer.status_code for answer in answers]
    # Those that were let in are answered; those that had not arrived are told to come again.
    assert statuses.count(200) >= 16 and set(statuses) <= {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            np.testing.assert_allclose(probs_of(answer), wanted, atol=1e-5)
        else:
            assert answer.headers["content-type"] == "application/problem+json" and answer.headers["retry-after"]
    assert process.returncode == 0
    # The sample is written when the service ends, with all that was predicted.
    assert not sampled or read_sample(sample, fingerprint(registered.bundles[0])).predicted >= 8 * (
        1 + statuses.count(200)
    )


def test_half_headers_are_closed(registered: Registered) -> None:
    promotion.promote(registered.client, f"{NAME}:1", "ended")
    with serving(registered, "--local") as (_, address):
        host, _, port = address.removeprefix("http://").partition(":")
        half = [socket.create_connection((host, int(port))) for _ in range(50)]
        try:
            started = time.monotonic()
            for connection in half:
                connection.sendall(b"POST /v1/models/x/predict HTTP/1.1\r\nHost: x\r\nX-")
            for connection in half:
                connection.settimeout(20)
                assert connection.recv(100) == b""
            assert time.monotonic() - started < 20
        finally:
            for connection in half:
                connection.close()
        assert httpx.get(f"{address}/healthz").status_code == 200
