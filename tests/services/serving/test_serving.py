"""Online inference: the same probabilities as `predict`, and every request that must be refused."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.stack_parts import free_ports
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_split
from services import promotion
from services.batch_prediction import predict_samples
from services.serving.admission import Admission
from services.serving.app import make_app
from services.serving.deployment import start, stop
from services.serving.limits import Limits
from services.serving.samples import Sample
from services.serving.service import ServeConfig
from services.web.auth import Tokens, check_host, new_token
from services.web.problems import Problem
from tests.services.fuzz import FUZZED, fuzz
from tests.services.registered import NAME, Registered
from trainers.model.predictor import Predictor

PREDICT = f"/v1/models/{NAME}/predict"
TOKEN, LINE = new_token("caller", ["predict"])


class Here:
    """In place of registry and queue: version 1 of one model, predicted at once, or when `hold` is set."""

    def __init__(self, predictor: Predictor) -> None:
        self.names = [NAME]
        self.predictor = predictor
        self.hold: asyncio.Event | None = None
        self.given_up = 0

    async def resolve(self, reference: str) -> tuple[str, str]:
        if reference.partition("@")[0].partition(":")[0] != NAME:
            raise Problem(404, "not served here")
        return NAME, "1"

    def age_s(self, name: str) -> float:
        return 2.0

    async def predict(self, model_id: str, samples: list[Sample], caller: str) -> list[dict[str, Any]]:
        assert model_id == f"{NAME}:1"
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        return predict_samples(self.predictor, [s.texts for s in samples], [s.images for s in samples])

    async def ready(self, model_id: str) -> None: ...


@pytest.fixture(scope="module")
def backend(registered: Registered) -> Here:
    return Here(Predictor.load(registered.bundles[0]))


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "tokens.yaml"
    file.write_text(LINE)
    file.chmod(0o600)
    return Tokens.read(file)


def client_of(backend: Here, tokens: Tokens, limits: Limits | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(backend, backend, tokens, limits), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.AsyncClient(transport=transport, base_url="http://serving", headers=headers)


def ask(backend: Here, tokens: Tokens, limits: Limits | None = None, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with client_of(backend, tokens, limits) as client:
            return await client.request(request.pop("method", "POST"), request.pop("url", PREDICT), **request)

    return asyncio.run(send())


def records(registered: Registered) -> list[dict[str, Any]]:
    table = read_split(load_manifest(registered.manifest), "val").table
    return table.select(["texts", "images"]).to_pylist()


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["texts"], "images": [base64.b64encode(Path(p).read_bytes()).decode() for p in row["images"]]}


def probs_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([list(prediction["probs"].values()) for prediction in response.json()["predictions"]])


def test_json_and_forms_give_the_probabilities_of_predict(
    registered: Registered, backend: Here, tokens: Tokens
) -> None:
    rows = records(registered)
    wanted = backend.predictor.predict([r["texts"] for r in rows], [r["images"] for r in rows]).probs
    many = ask(backend, tokens, json={"samples": [as_json(row) for row in rows]})
    np.testing.assert_allclose(probs_of(many), wanted, atol=1e-5)
    assert many.json()["model"] == {"name": NAME, "version": "1"}
    row = next(row for row in rows if row["texts"] and row["images"])
    files = [("image", ("p", Path(path).read_bytes())) for path in row["images"]]
    form = ask(backend, tokens, data={"text": row["texts"]}, files=files)
    np.testing.assert_allclose(probs_of(form)[0], wanted[rows.index(row)], atol=1e-5)
    one = ask(backend, tokens, json=as_json(row))
    np.testing.assert_allclose(probs_of(one)[0], wanted[rows.index(row)], atol=1e-5)


def test_requests_have_the_names_of_records_and_their_plurals(
    registered: Registered, backend: Here, tokens: Tokens
) -> None:
    row = next(row for row in records(registered) if row["texts"] and len(row["images"]) == 1)
    content, encoded = Path(row["images"][0]).read_bytes(), as_json(row)["images"]
    wanted = backend.predictor.predict([row["texts"]], [row["images"]]).probs
    bodies: list[dict[str, Any]] = [
        {"json": {"text": row["texts"], "image": encoded}},
        {"json": {"texts": row["texts"], "image": encoded[0]}},
        {"json": {"text": row["texts"], "images": encoded[0]}},
        {"data": {"text": row["texts"]}, "files": [("image", ("p", content))]},
        {"data": {"texts": row["texts"]}, "files": [("images", ("p", content))]},
    ]
    for body in bodies:
        np.testing.assert_allclose(probs_of(ask(backend, tokens, **body)), wanted, atol=1e-5)
    for body, nearest in (({"imag": encoded}, "image"), ({"sample": []}, "samples")):
        assert f"(nearest: {nearest}" in ask(backend, tokens, json=body).json()["detail"]


def test_a_picture_that_is_not_read_here_is_told_as_training_tells_it(backend: Here, tokens: Tokens) -> None:
    heic = base64.b64encode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)).decode()
    answer = ask(backend, tokens, json={"text": "x", "image": heic})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "samples.0.images.0: not read here (HEIC)"


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header claims 30,000 × 30,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9000))
        + chunk(b"IEND", b"")
    )


def flat_png(width: int, height: int) -> bytes:
    """A picture of one colour in a few bytes."""
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


JSON_TYPE = {"Content-Type": "application/json"}
FORM_TYPE = {"Content-Type": 'multipart/form-data; boundary="AB"'}
FORM = b'--AB\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n--AB--\r\n'
SMALL = Limits(body_bytes=4000, samples=2, pictures=2, text_chars=50)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, {"content": b"{not json", "headers": JSON_TYPE}),
        (400, {"content": b"[1, 2]", "headers": JSON_TYPE}),
        (400, {"content": b'{"text": "\\ud800"}', "headers": JSON_TYPE}),
        (400, {"content": b"[" * 3000, "headers": JSON_TYPE}),
        (401, {"json": {"text": "x"}, "headers": {"Authorization": "Bearer wrong"}}),
        (401, {"json": {"text": "x"}, "headers": {"Authorization": f"Basic {TOKEN}"}}),
        (404, {"json": {"text": "x"}, "url": "/v1/models/other/predict"}),
        (404, {"json": {"text": "x"}, "url": "/v1/models/..%2F..%2Fetc/predict"}),
        (404, {"json": {"text": "x"}, "url": f"/v1/models/{NAME}%27%20OR%201=1/predict"}),
        (405, {"method": "GET"}),
        (413, {"json": {"text": "x" * 5000}}),
        (413, {"json": {"text": "x" * 51}}),
        (413, {"json": {"samples": [{"text": "x"}] * 3}}),
        (413, {"json": {"text": "x", "images": [base64.b64encode(bomb()).decode()]}}),
        (415, {"content": b"text", "headers": {"Content-Type": "text/plain"}}),
        (422, {"json": {}}),
        (422, {"json": {"samples": []}}),
        (422, {"json": {"text": "  "}}),
        (400, {"content": b'{"text": "x", "text": "y"}', "headers": JSON_TYPE}),
        (422, {"json": {"text": "x", "image": "y"}}),
        (422, {"json": {"text": "x", "picture": "y"}}),
        (422, {"json": {"text": "x", "image": [], "images": []}}),
        (422, {"files": [("text", (None, "x")), ("image", (None, "words"))]}),
        (422, {"files": [("caption", (None, "x"))]}),
        (422, {"json": {"text": "x", "images": ["***"]}}),
        (422, {"json": {"text": "x", "images": [base64.b64encode(b"no picture").decode()]}}),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    backend: Here, tokens: Tokens, status: int, request_: dict[str, Any]
) -> None:
    response = ask(backend, tokens, SMALL, **dict(request_))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["detail"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("told", "status", "request_"),
    [
        ("byte 10 is not UTF-8", 400, {"content": '{"text": "é"}'.encode("latin-1"), "headers": JSON_TYPE}),
        (
            "a Content-Encoding is not read here",
            415,
            {"content": gzip.compress(b'{"text": "x"}'), "headers": {**JSON_TYPE, "Content-Encoding": "gzip"}},
        ),
        ("the form is cut off", 400, {"content": FORM[:-6], "headers": FORM_TYPE}),
        ("more than 50,000,000 pixels", 413, {"json": {"image": base64.b64encode(bomb()).decode()}}),
    ],
)
def test_the_reason_of_a_refusal_is_the_true_one(
    backend: Here, tokens: Tokens, told: str, status: int, request_: dict[str, Any]
) -> None:
    response = ask(backend, tokens, SMALL, **dict(request_))
    assert response.status_code == status and told in response.json()["detail"], response.text
    whole = ask(backend, tokens, SMALL, content=FORM, headers=FORM_TYPE)
    assert whole.status_code == 200, whole.text


def test_a_body_of_untold_length_is_cut_off(backend: Here, tokens: Tokens) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    response = ask(backend, tokens, SMALL, content=endless(), headers=JSON_TYPE)
    assert response.status_code == 413
    assert sent <= 6000


def test_too_many_at_once_and_too_slow(backend: Here, tokens: Tokens) -> None:
    async def crowd() -> tuple[list[int], int]:
        backend.hold = asyncio.Event()
        async with client_of(backend, tokens, Limits(in_flight=2, timeout_s=20)) as client:
            waiting = [asyncio.create_task(client.post(PREDICT, json={"text": "x"})) for _ in range(2)]
            while (await client.get("/metrics")).text.find("m2can_in_flight 2.0") < 0:
                await asyncio.sleep(0)
            refused = await client.post(PREDICT, json={"text": "x"})
            assert refused.headers["retry-after"] == "1"
            backend.hold.set()
            answered = [response.status_code for response in await asyncio.gather(*waiting)]
        backend.hold = asyncio.Event()
        async with client_of(backend, tokens, Limits(timeout_s=0.05)) as client:
            late = await client.post(PREDICT, json={"text": "x"})
        backend.hold = None
        return [refused.status_code, *answered], late.status_code

    assert asyncio.run(crowd()) == ([429, 200, 200], 504)


def test_one_caller_takes_no_place_of_another(backend: Here, tmp_path: Path) -> None:
    other, line = new_token("other", ["predict"])
    file = tmp_path / "two.yaml"
    file.write_text(f"{LINE}\n{line}")
    file.chmod(0o600)

    async def crowd() -> list[int]:
        backend.hold = asyncio.Event()
        async with client_of(backend, Tokens.read(file), Limits(in_flight=1, timeout_s=20)) as client:
            first = asyncio.create_task(client.post(PREDICT, json={"text": "x"}))
            while (await client.get("/metrics")).text.find("m2can_in_flight 1.0") < 0:
                await asyncio.sleep(0)
            second = await client.post(PREDICT, json={"text": "x"})
            headers = {"Authorization": f"Bearer {other}"}
            third = asyncio.create_task(client.post(PREDICT, json={"text": "x"}, headers=headers))
            while (await client.get("/metrics")).text.find("m2can_in_flight 2.0") < 0:
                await asyncio.sleep(0)
            backend.hold.set()
            answers = [(await first).status_code, second.status_code, (await third).status_code]
        backend.hold = None
        return answers

    assert asyncio.run(crowd()) == [200, 429, 200]


def test_a_token_has_a_rate_of_its_own(backend: Here, tmp_path: Path) -> None:
    other, line = new_token("other", ["predict"])
    file = tmp_path / "two.yaml"
    file.write_text(f"{LINE}\n{line}")
    file.chmod(0o600)

    async def crowd() -> list[int]:
        limits = Limits(requests_per_s=0.2)  # two at once, then one in five seconds
        async with client_of(backend, Tokens.read(file), limits) as client:

            async def send(token: str, **request: Any) -> httpx.Response:
                return await client.post(PREDICT, headers={"Authorization": f"Bearer {token}"}, **request)

            statuses = [(await send(TOKEN, json=body)).status_code for body in ({"text": "x"}, {})]
            refused = await send(TOKEN, json={"text": "x"})
            assert refused.headers["retry-after"] == "5"
            answered = await send(other, json={"text": "x"})
            guessed = [(await send(f"guess-{n}")).status_code for n in range(3)]
            still = await send(other, json={"text": "x"})
        return [*statuses, refused.status_code, answered.status_code, *guessed, still.status_code]

    assert asyncio.run(crowd()) == [200, 422, 429, 200, 401, 401, 429, 200]


def test_a_slow_body_is_given_up(backend: Here, tokens: Tokens) -> None:
    async def drops() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    limits = Limits(body_s=0.05)
    response = ask(backend, tokens, limits, content=drops(), headers=JSON_TYPE)
    assert response.status_code == 408
    assert "too slowly" in response.json()["detail"]


def test_what_nobody_waits_for_is_given_up(backend: Here, tokens: Tokens) -> None:
    """A client that goes while its request is computed."""
    body = json.dumps({"text": "x"}).encode()
    scope = {
        "type": "http", "method": "POST", "path": PREDICT, "raw_path": PREDICT.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"authorization", f"Bearer {TOKEN}".encode())],
        "server": ("serving", 80), "scheme": "http", "root_path": "", "http_version": "1.1",
    }  # fmt: skip

    async def leave() -> int:
        messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        backend.hold, backend.given_up = asyncio.Event(), 0
        await make_app(backend, backend, tokens)(scope, receive, send)
        await asyncio.sleep(0)
        backend.hold = None
        return backend.given_up

    assert asyncio.run(leave()) == 1


def test_a_service_that_ends_lets_nothing_new_in(backend: Here, tokens: Tokens) -> None:
    async def drain() -> tuple[list[int], str]:
        admission = Admission(Limits())
        transport = httpx.ASGITransport(make_app(backend, backend, tokens, admission=admission))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        backend.hold = asyncio.Event()
        async with httpx.AsyncClient(transport=transport, base_url="http://serving", headers=headers) as client:
            under_way = asyncio.create_task(client.post(PREDICT, json={"text": "x"}))
            while not admission.under_way:
                await asyncio.sleep(0)
            admission.draining = True
            late = await client.post(PREDICT, json={"text": "x"})
            ready, alive = await client.get("/readyz"), await client.get("/healthz")
            backend.hold.set()
            answers = [(await under_way).status_code, late.status_code, ready.status_code, alive.status_code]
        backend.hold = None
        return answers, late.headers["retry-after"]

    assert asyncio.run(drain()) == ([200, 503, 503, 200], "5")


@pytest.mark.parametrize(
    ("told", "body"),
    [
        ("texts; at most 200", {"text": [""] * 201 + ["x"]}),
        ("at most 1000 items", {"text": [""] * 5000 + ["x"]}),
        ("too many values", {"text": [""] * 300_000}),
        ("pixels together", {"text": "x", "images": [base64.b64encode(flat_png(900, 900)).decode()] * 3}),
        ("not read here (PPM)", {"text": "x", "images": [base64.b64encode(b"P6 9 9 255 " + bytes(243)).decode()]}),
    ],
)
def test_many_small_things_are_too_many(backend: Here, tokens: Tokens, told: str, body: dict[str, Any]) -> None:
    response = ask(backend, tokens, Limits(request_pixels=2_000_000), json=body)
    assert response.status_code in (413, 422)
    assert told in response.json()["detail"]


def test_health_is_open_and_metrics_are_not(backend: Here, tokens: Tokens) -> None:
    nobody = {"Authorization": ""}
    for url, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/v1/models", 401)):
        assert ask(backend, tokens, url=url, method="GET", headers=nobody).status_code == status, url
    assert ask(backend, tokens, url="/readyz", method="GET").text == f"ready\n{NAME}: the registry answered 2 s ago"
    assert f'm2can_alias_age_seconds{{model="{NAME}"}} 2.0' in ask(backend, tokens, url="/metrics", method="GET").text
    assert ask(backend, tokens, url="/v1/models", method="GET").json() == {"models": [{"name": NAME, "version": "1"}]}


def test_serving_in_one_process_imports_no_ray() -> None:
    code = "import sys, services.serving.local; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nobody_listens_to_others_without_a_token(tokens: Tokens, tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, Tokens([]))
    check_host("0.0.0.0", tokens)
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(InputError, match="is reached by others"):
            check_host(host, Tokens([]))
    (tmp_path / "tokens.yaml").chmod(0o644)
    with pytest.raises(InputError, match="others may read it"):
        Tokens.read(tmp_path / "tokens.yaml")


@pytest.fixture
def served(registered: Registered, ray_cluster: None) -> Any:
    promotion.promote(registered.client, f"{NAME}:1", "live")
    (port,) = free_ports(1)
    config = ServeConfig([f"{NAME}@live"], registered.uri, Tokens([]), alias_ttl_s=0.1)
    start(config, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    stop(config)


@pytest.mark.slow
def test_ray_serve_answers_as_predict_does_through_a_promotion(served: str, registered: Registered) -> None:
    """No answer is lost or mixed: each is that of the version it names, and both versions occur."""
    rows = records(registered)
    bodies = [as_json(row) for row in rows]
    wanted = {
        str(n + 1): Predictor.load(bundle).predict([r["texts"] for r in rows], [r["images"] for r in rows]).probs
        for n, bundle in enumerate(registered.bundles)
    }
    assert np.abs(wanted["1"] - wanted["2"]).max() > 1e-4
    with pytest.raises(InputError, match="--address: serves already; found 'm2can'"):
        start(ServeConfig([NAME], registered.uri, Tokens([])), "127.0.0.1", free_ports(1)[0])

    async def one(client: httpx.AsyncClient, n: int) -> str:
        response = await client.post(PREDICT, json=bodies[n % len(bodies)])
        assert response.status_code == 200, response.text
        version = response.json()["model"]["version"]
        np.testing.assert_allclose(probs_of(response)[0], wanted[version][n % len(bodies)], atol=1e-5)
        return str(version)

    async def load() -> list[str]:
        async with httpx.AsyncClient(base_url=served, timeout=60) as client:
            assert (await client.get("/readyz")).status_code == 200
            versions = [*await asyncio.gather(*(one(client, n) for n in range(24)))]
            await asyncio.to_thread(promotion.promote, registered.client, f"{NAME}:2", "live")
            while versions[-1] != "2":
                versions += await asyncio.gather(*(one(client, n) for n in range(8)))
            return versions

    versions = asyncio.run(load())
    assert set(versions) == {"1", "2"}


@FUZZED
def test_schemathesis_finds_nothing(seconds: float, backend: Here, tokens: Tokens) -> None:
    paths = {"/v1/models/{reference}/predict", "/v1/models", "/healthz", "/readyz", "/metrics"}
    assert fuzz(make_app(backend, backend, tokens), TOKEN, paths, seconds=seconds) > len(paths)
