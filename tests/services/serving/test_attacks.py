"""A process that serves, under attack by one token: another token is answered in time, and memory stays flat."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from services import promotion
from services.web.auth import new_token
from tests.services.registered import NAME, Registered
from tests.services.serving.test_processes import serving
from tests.services.serving.test_serving import PREDICT, flat_png

pytestmark = pytest.mark.slow

ROUNDS = 5
LONGEST_S = 5.0  # that the other token waits, on a machine that does other things too
GROWTH = (
    400 * 2**20
)  # bytes, of buffers that become as large as they will be; a picture kept of each round would be more


class Attacker:
    """All that one token can do, and those who have none."""

    def __init__(self, address: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.client = httpx.AsyncClient(base_url=address, headers=headers)
        self.token = token
        self.host, _, self.port = address.removeprefix("http://").partition(":")
        large = base64.b64encode(flat_png(6300, 6300)).decode()  # 40 megapixels in a few kilobytes
        self.too_many_pixels = json.dumps({"samples": [{"text": "x", "images": [large] * 4}] * 32}).encode()
        self.many_pixels = json.dumps({"samples": [{"text": "x", "images": [large]}] * 10}).encode()
        self.many_texts = b'{"text": [' + b'"",' * 5_500_000 + b'""]}'

    async def post(self, body: bytes, timeout: float = 60) -> int:
        return (await self.client.post(PREDICT, content=body, timeout=timeout)).status_code

    async def leave(self) -> None:
        """Ask for much and go before it is computed."""
        with pytest.raises(httpx.TimeoutException):
            await self.post(self.many_pixels, timeout=0.3)

    async def slow_body(self) -> int:
        """A byte a second, until there is an answer: its status."""
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\nContent-Length: 999\r\n"
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
        answer = asyncio.create_task(reader.readline())
        while not (await asyncio.wait([answer], timeout=1))[0]:
            writer.write(b" ")
        writer.close()
        return int(answer.result().split()[1])

    async def half_header(self) -> bytes:
        """What comes before the connection is closed."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        writer.write(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nX-".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def attack(self) -> dict[str, set[Any]]:
        """All at once: what each kind of request was answered."""
        kinds = {
            "too many pixels": [self.post(self.too_many_pixels) for _ in range(4)],
            "many texts": [self.post(self.many_texts)],
            "gone": [self.leave() for _ in range(4)],
            "slow bodies": [self.slow_body() for _ in range(50)],
            "half headers": [self.half_header() for _ in range(300)],
        }
        answers = await asyncio.gather(*(asyncio.gather(*requests) for requests in kinds.values()))
        return {name: set(found) for name, found in zip(kinds, answers, strict=True)}


def another(address: str, token: str, ended: threading.Event) -> list[float]:
    """How long another token waits for one text, again and again."""
    waited = []
    with httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {token}"}) as client:
        while not ended.wait(0.2):
            started = time.monotonic()
            answer = client.post(PREDICT, json={"text": "a day"})
            waited.append(time.monotonic() - started)
            assert answer.status_code == 200, answer.text
    return waited


def test_another_token_is_answered_and_memory_stays_flat(registered: Registered, tmp_path: Path) -> None:
    promotion.promote(registered.client, f"{NAME}:1", "ended")
    (bad, bad_line), (good, good_line) = (new_token(name, ["predict"]) for name in ("attacker", "other"))
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"{bad_line}\n{good_line}")
    tokens.chmod(0o600)

    async def under_attack(address: str, process: psutil.Process) -> tuple[list[int], list[float]]:
        attacker, memory, waited = Attacker(address, bad), [], []
        assert await attacker.post(b'{"text": "x"}') == 200  # the version is loaded
        for _ in range(ROUNDS):
            ended = threading.Event()
            asking = asyncio.create_task(asyncio.to_thread(another, address, good, ended))
            answers = await attacker.attack()
            ended.set()
            waited += await asking
            assert answers["too many pixels"] == {413}
            assert answers["many texts"] == {413}
            assert answers["slow bodies"] == {408}
            assert answers["half headers"] == {b""}
            memory.append(process.memory_info().rss)
        return memory, waited

    with serving(registered, "--local", "--tokens", str(tokens), "--sample", str(tmp_path / "s.parquet")) as served:
        process, address = served
        memory, waited = asyncio.run(under_attack(address, psutil.Process(process.pid)))
    assert max(waited) < LONGEST_S
    assert max(memory) < memory[0] + GROWTH, memory
