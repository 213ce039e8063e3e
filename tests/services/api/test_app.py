"""The control plane: what it does, what it refuses, and that it keeps to its own OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from datasets_manifest.errors import InputError
from services.api.app import make_api
from services.api.audit import AuditLog
from services.api.path_policy import confine_path
from services.api.requests import ApiConfig
from services.jobs.job_request import JobRequest
from services.jobs.jobs import Job
from services.web.auth import Tokens, new_token
from services.web.problems import Problem
from services.web.rate_limit import RateLimit
from tests.services.fuzz import FUZZED, fuzz
from tests.services.registered import NAME, Registered

SECRETS = {name: new_token(name, [name]) for name in ("read", "submit", "admin")}
SECRETS["shop"] = new_token("shop", ["submit"], ["shop-"])


class JobsInMemory:
    """In place of the cluster: jobs run for ever, until they are stopped."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.requests: list[JobRequest] = []

    def submit(self, request: JobRequest, metadata: dict[str, str]) -> Job:
        request.encoded()
        self.requests.append(request)
        job = Job(
            request.id, request.kind, "RUNNING", request.run_name, "", "2026-01-01T00:00:00+00:00", None, metadata
        )
        self.jobs[request.id] = job
        return job

    def list_jobs(self) -> list[Job]:
        return list(self.jobs.values())[::-1]

    def find(self, identity: str) -> Job | None:
        return self.jobs.get(identity)

    def logs(self, identity: str) -> str:
        return f"{identity} prints\n"

    async def follow(self, identity: str) -> AsyncIterator[str]:
        yield "one\n"
        yield "two\n"

    def stop(self, identity: str) -> Job:
        self.jobs[identity] = replace(self.jobs[identity], status="STOPPED")
        return self.jobs[identity]

    def delete(self, identity: str) -> None:
        del self.jobs[identity]


class Service:
    def __init__(
        self, folder: Path, registered: Registered, rate: RateLimit | None = None, *, tokens: bool = True, **more: Any
    ) -> None:
        file = folder / "tokens.yaml"
        file.write_text("\n".join(line for _, line in SECRETS.values()))
        file.chmod(0o600)
        self.jobs, self.folder = JobsInMemory(), folder
        config = ApiConfig(
            jobs=self.jobs,
            registry=lambda: registered.client,
            tracking_uri=registered.uri,
            tokens=Tokens.read(file if tokens else None),
            roots=[folder],
            storage=folder / "runs",
            audit=AuditLog(folder / "audit.jsonl"),
            rate=rate or RateLimit(1e6, 10**6),
            **{"most_jobs": 1000, **more},
        )
        self.app = make_api(config)

    def ask(self, method: str, path: str, token: str | None = "admin", **request: Any) -> httpx.Response:
        headers = request.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {SECRETS[token][0] if token in SECRETS else token}"

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return await client.request(method, path, headers=headers, **request)

        return asyncio.run(send())

    def recipe(self, **changes: Any) -> dict[str, Any]:
        data = {"sources": [str(self.folder / "a.yaml")], "target": str(self.folder / "b.yaml")}
        return {"data": data, **changes}


@pytest.fixture
def service(tmp_path: Path, registered: Registered) -> Service:
    return Service(tmp_path, registered)


def test_a_job_from_its_recipe_to_its_end(service: Service) -> None:
    made = service.ask("POST", "/v1/jobs", json={"recipe": service.recipe(train={"epochs": 3})})
    assert made.status_code == 202, made.text
    identity = made.json()["id"]
    request = service.jobs.requests[0]
    assert request.content["train"]["epochs"] == 3
    assert request.content["run"] == {"name": identity, "storage": str(service.folder / "runs")}
    assert service.ask("GET", f"/v1/jobs/{identity}").json()["metadata"]["m2can.by"] == "admin"
    assert service.ask("GET", f"/v1/jobs/{identity}/logs").text == f"{identity} prints\n"
    assert service.ask("GET", f"/v1/jobs/{identity}/logs?follow=true").text == "one\ntwo\n"
    assert service.ask("DELETE", f"/v1/jobs/{identity}").status_code == 409
    assert service.ask("POST", f"/v1/jobs/{identity}/stop").json()["status"] == "STOPPED"
    assert service.ask("DELETE", f"/v1/jobs/{identity}").status_code == 204
    assert service.ask("GET", f"/v1/jobs/{identity}").status_code == 404


def test_one_key_makes_one_job(service: Service) -> None:
    request = {"json": {"recipe": service.recipe()}, "headers": {"Idempotency-Key": "k1"}}
    first, again = (service.ask("POST", "/v1/jobs", **json.loads(json.dumps(request))) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert len(service.jobs.requests) == 1
    other = {"json": {"recipe": service.recipe(train={"epochs": 9})}, "headers": {"Idempotency-Key": "k1"}}
    assert service.ask("POST", "/v1/jobs", **other).status_code == 409
    assert service.ask(
        "POST", "/v1/jobs", "submit", json=request["json"], headers={"Idempotency-Key": "k1"}
    ).json() != (first.json())  # another caller's key is another key


def test_pages_show_every_job_once(service: Service) -> None:
    for _ in range(5):
        service.ask("POST", "/v1/jobs", json={"recipe": service.recipe()})
    seen, cursor = [], ""
    while True:
        page = service.ask("GET", f"/v1/jobs?limit=2{cursor}").json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == [job.id for job in service.jobs.list_jobs()]


def test_models_are_shown_and_promoted(service: Service) -> None:
    (model,) = service.ask("GET", "/v1/models", "read").json()["models"]
    assert (model["name"], model["version"]) == (NAME, "2")
    assert service.ask("GET", f"/v1/models/{NAME}?version=1").json()["version"] == "1"
    moved = service.ask("POST", f"/v1/models/{NAME}/promote", json={"version": "1", "alias": "by-api"})
    assert moved.json()["after"] == "1" and moved.json()["by"] == "admin"
    assert service.ask("POST", f"/v1/models/{NAME}/promote", json={"version": "99"}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("GET", "/v1/jobs", "read"),
        ("GET", "/v1/jobs/a", "read"),
        ("GET", "/v1/jobs/a/logs", "read"),
        ("GET", "/v1/sweeps", "read"),
        ("GET", "/v1/models", "read"),
        ("GET", f"/v1/models/{NAME}", "read"),
        ("POST", "/v1/jobs", "submit"),
        ("POST", "/v1/jobs/a/stop", "submit"),
        ("POST", "/v1/sweeps", "submit"),
        ("POST", "/v1/data/check", "submit"),
        ("DELETE", "/v1/jobs/a", "admin"),
        ("POST", f"/v1/models/{NAME}/promote", "admin"),
    ],
)
def test_each_route_needs_its_scope(service: Service, method: str, path: str, needs: str) -> None:
    recipe = service.recipe()
    bodies = {
        "/v1/jobs": {"recipe": recipe},
        "/v1/sweeps": {"sweep": SWEEP, "recipe": recipe},
        "/v1/data/check": {"manifests": [str(service.folder / "a.yaml")]},
        f"/v1/models/{NAME}/promote": {"version": "1", "alias": "routes"},
    }
    body = {"json": bodies[path]} if path in bodies and method == "POST" else {}
    for token in (None, "", "wrong"):
        assert service.ask(method, path, token, **body).status_code == 401
    for scope in ("read", "submit"):
        expected = service.ask(method, path, scope, **body).status_code
        assert (expected == 403) == (scope != needs), (scope, expected)
    assert service.ask(method, path, "admin", **body).status_code in (200, 202, 404)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"sources": ["/etc/passwd"], "target": "/b.yaml"}}, "data.sources.0: leads outside"),
        ({"run": {"storage": "{folder}/../.."}}, "run.storage: leads outside"),
        ({"run": {"storage": "{folder}/link/x"}}, "run.storage: leads outside"),
        ({"run": {"storage": "s3://bucket"}}, "run.storage: is not an absolute path"),
        ({"run": {"name": "../up"}}, "run.name"),
        ({"run": {"name": "x;reboot"}}, "run.name"),
        ({"encoders": {"text": {"weights": "/etc/evil.pt"}}}, "encoders.text.weights: leads outside"),
        (
            {"encoders": {"features": "/etc/x", "text": {"freeze": "all"}, "picture": {"freeze": "all"}}},
            "encoders.features: leads outside",
        ),
        ({"train": {"start_from": "/etc/run"}}, "train.start_from: leads outside"),
        ({"train": {"target_labels": "/etc/labels.csv"}}, "train.target_labels: leads outside"),
        ({"train": {"start_from": "../../run"}}, "train.start_from: is not an absolute path"),
        ({"train": {"start_from": "~/run"}}, "train.start_from: is not an absolute path"),
        ({"encoders": {"text": {"name": "/etc/model"}}}, "encoders.text.name: leads outside"),
        ({"encoders": {"text": {"name": "trainers/../../elsewhere/model"}}}, "encoders.text.name: is neither a name"),
        ({"encoders": {"text": {"name": "~/model"}}}, "encoders.text.name: is neither a name"),
        ({"encoders": {"text": {"name": "a/b/c"}}}, "encoders.text.name: is neither a name"),
        ({"tracking": {"uri": "http://elsewhere"}}, "tracking.uri: is not this service's MLflow"),
        ({"cluster": {"address": "ray://elsewhere:1"}}, "cluster.address: is set by the service"),
        ({"train": {"epoch": 3}}, "train.epochs"),
        ({"run": "no section"}, "run"),
        ({"preset": {"a": 1}}, "unknown preset"),
    ],
)
def test_a_recipe_that_reaches_out_is_refused(service: Service, changes: dict[str, Any], words: str) -> None:
    (service.folder / "link").symlink_to("/")
    placed = json.loads(json.dumps(changes).replace("{folder}", str(service.folder)))
    answer = service.ask("POST", "/v1/jobs", json={"recipe": service.recipe(**placed)})
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert service.jobs.requests == []


SWEEP = {"name": "s", "seeds": [0], "variants": {"a": []}}


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"variants": {"a": ["run.storage=/elsewhere"]}}, "run.storage: leads outside"),
        ({"variants": {"a": [], "b": ["data.target=/etc/passwd"]}}, "data.target: leads outside"),
        ({"variants": {"a": ["data={sources: [/etc/a.yaml], target: /etc/b.yaml}"]}}, "data.sources.0: leads outside"),
        ({"variants": {"a": ["tracking.uri=http://elsewhere"]}}, "tracking.uri: is not this service's MLflow"),
        ({"variants": {"a": ["cluster.address=ray://elsewhere:1"]}}, "cluster.address: is set by the service"),
        ({"set": ["encoders.picture.weights=/etc/evil.pt"]}, "encoders.picture.weights: leads outside"),
        (
            {"variants": {}, "seeds": [], "space": {"data.target": {"choices": ["/etc/x"]}}},
            "data.target: leads outside",
        ),
        ({"variants": {}, "seeds": [], "space": {"uacr.strt": {"choices": [1]}}}, "nearest: uacr.start"),
        ({"name": "../up"}, "name: wrong value"),
        ({"variants": {"a": ["train.epochs=many"]}}, "does not fit the recipe: train.epochs"),
        ({"trails": 3}, "unknown key `trails`"),
        ({"recipe": "/etc/passwd"}, "sweep.recipe: is given beside the sweep"),
        ({"variants": {"a": ["x" * 100_000]}}, "too long to travel"),
        ({"variants": {}, "seeds": [], "space": {"uacr.start": {"choices": [0.1] * 201}}}, "sweep.space: is more than"),
        ({"trials": 1_000_000_000}, "sweep.trials: is more than this service takes"),
        ({"seeds": list(range(1001))}, "sweep.seeds: is more than this service takes"),
    ],
)
def test_a_sweep_that_is_none_or_reaches_out_is_refused(service: Service, sweep: dict[str, Any], words: str) -> None:
    answer = service.ask("POST", "/v1/sweeps", json={"sweep": SWEEP | sweep, "recipe": service.recipe()})
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"] and "m2can-sweep" not in answer.text
    assert service.jobs.requests == []


def test_a_sweep_travels_the_same_each_time_it_is_submitted(service: Service) -> None:
    """The sweep on the cluster goes on only if nothing in it changed: no id of a job may stand in it."""
    for _ in range(2):
        made = service.ask("POST", "/v1/sweeps", json={"sweep": SWEEP, "recipe": service.recipe()})
        assert made.status_code == 202 and made.json()["run_name"] == "s", made.text
    first, second = service.jobs.requests
    assert first.content == second.content and first.id != second.id
    assert first.content["recipe"]["run"] == {"storage": str(service.folder / "runs")}
    assert first.content["recipe"]["tracking"]["uri"].startswith("sqlite")
    assert [job["id"] for job in service.ask("GET", "/v1/sweeps").json()["jobs"]] == [second.id, first.id]


def test_the_documents_examples_are_accepted(service: Service) -> None:
    schemas = service.ask("GET", "/openapi.json", None).json()["components"]["schemas"]
    text = json.dumps({n: schemas[n]["properties"] for n in ("JobIn", "SweepIn")}).replace(
        '"/data/', f'"{service.folder}/'
    )
    examples = {n: {k: p["examples"][0] for k, p in fields.items()} for n, fields in json.loads(text).items()}
    assert service.ask("POST", "/v1/jobs", json=examples["JobIn"]).status_code == 202
    assert service.ask("POST", "/v1/sweeps", json=examples["SweepIn"]).status_code == 202


@pytest.mark.parametrize("depth", [150, 900, 100_000])
def test_a_deeply_nested_body_is_refused(service: Service, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for path, body in (("jobs", '{"recipe": %s}'), ("sweeps", '{"sweep": %s, "recipe": {}}')):
        content = body % ('{"data": ' + nested + "}")
        answer = service.ask("POST", f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text


def test_oversized_and_malformed_requests(service: Service) -> None:
    assert service.ask("POST", "/v1/jobs", content=b" " * 1_000_001).status_code == 413
    assert (
        service.ask("POST", "/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    )
    for identity in ("..%2Fup", "a%20b", "A", "a;b"):
        assert service.ask("GET", f"/v1/jobs/{identity}").status_code in (404, 422)
    assert service.ask("PUT", "/v1/jobs").status_code == 405


def test_what_is_too_large_is_counted_and_written_down(tmp_path: Path, registered: Registered) -> None:
    service = Service(tmp_path, registered, RateLimit(1.0, 2, lambda: 0.0))
    statuses = [service.ask("POST", "/v1/jobs", content=b" " * 1_000_001).status_code for _ in range(3)]
    assert statuses == [413, 413, 429]
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["caller"], line["status"]) for line in lines] == [("admin", 413), ("admin", 413), ("admin", 429)]


def test_a_caller_has_a_number_of_jobs_at_a_time(tmp_path: Path, registered: Registered) -> None:
    service = Service(tmp_path, registered, most_jobs=2)
    body = {"json": {"recipe": service.recipe()}}
    first, second, third = (service.ask("POST", "/v1/jobs", "submit", **body) for _ in range(3))
    assert [answer.status_code for answer in (first, second, third)] == [202, 202, 429]
    assert third.json()["detail"] == "2 jobs of submit have not ended; at most 2 may"
    assert service.ask("POST", "/v1/jobs", "admin", **body).status_code == 202
    service.ask("POST", f"/v1/jobs/{first.json()['id']}/stop")
    assert service.ask("POST", "/v1/jobs", "submit", **body).status_code == 202


@pytest.mark.parametrize(
    ("query", "told"),
    [("curser=a", "'curser' is no parameter here"), ("limit=1&limit=2", "'limit' is given 2 times; once is allowed")],
)
def test_a_parameter_that_would_be_ignored_is_refused(service: Service, query: str, told: str) -> None:
    refused = service.ask("GET", f"/v1/models?{query}")
    assert refused.status_code == 422 and told in refused.json()["detail"]


def test_a_token_registers_only_models_of_its_own(service: Service) -> None:
    def submit(**tracking: Any) -> httpx.Response:
        return service.ask("POST", "/v1/jobs", "shop", json={"recipe": service.recipe(tracking=tracking)})

    assert submit(register_as="shop-reviews").status_code == 202
    for other in ({}, {"register_as": "m2can-mountain"}):
        refused = submit(**other)
        assert refused.status_code == 422
        assert "tracking.register_as: is not for this token" in refused.json()["detail"]
    sweep = {"variants": {"a": ["tracking.register_as=m2can-mountain"]}, "seeds": [0], "name": "s"}
    recipe = service.recipe(tracking={"register_as": "shop-x"})
    assert service.ask("POST", "/v1/sweeps", "shop", json={"sweep": sweep, "recipe": recipe}).status_code == 422


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080", "Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": "lab.internal"}, 200),
        ({"Host": "other.example"}, 400),
        ({"Host": "127.0.0.1.other.example"}, 400),
        ({"Host": ""}, 400),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_without_tokens_it_answers_only_its_own_host(
    tmp_path: Path, registered: Registered, headers: dict[str, str], status: int
) -> None:
    service = Service(tmp_path, registered, tokens=False, allowed_hosts=("lab.internal",))
    answer = service.ask("GET", "/v1/jobs", None, headers={"Host": "127.0.0.1:8080"} | headers)
    assert answer.status_code == status, answer.text


def test_an_unknown_query_parameter_is_refused(service: Service) -> None:
    wrong = service.ask("GET", "/v1/jobs?limit=2&curser=a")
    assert wrong.status_code == 422
    assert wrong.json()["detail"] == "'curser' is no parameter here; known are: cursor, limit"
    assert "known are: none" in service.ask("GET", "/v1/jobs/a?limit=2").json()["detail"]


def test_too_many_requests_are_slowed_down_and_so_is_guessing(tmp_path: Path, registered: Registered) -> None:
    now = [0.0]
    service = Service(tmp_path, registered, RateLimit(1.0, 3, lambda: now[0]))
    assert [service.ask("GET", "/v1/jobs").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert service.ask("GET", "/v1/jobs", "read").status_code == 200
    now[0] += 1.0
    assert [service.ask("GET", "/v1/jobs").status_code for _ in range(2)] == [200, 429]
    assert [service.ask("GET", "/v1/jobs", "guess").status_code for _ in range(4)] == [401, 401, 401, 429]


def test_the_audit_log_says_who_did_what_and_no_secret(service: Service) -> None:
    service.ask("POST", "/v1/jobs", "submit", json={"recipe": service.recipe()})
    service.ask("GET", "/v1/jobs?limit=1", "wrong-token-value")
    file = service.folder / "audit.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["caller"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("submit", "POST", "/v1/jobs", 202),
        ("unknown from 127.0.0.1", "GET", "/v1/jobs", 401),
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert "wrong-token-value" not in text and not any(secret in text for secret, _ in SECRETS.values())


def test_paths_with_nul_or_none_at_all(tmp_path: Path) -> None:
    for path in ("a\0b", "", "relative", "/" + "x/" * 3000):
        with pytest.raises(InputError):
            confine_path("field", path, [tmp_path])


def test_a_rate_limit_tells_when_to_come_again() -> None:
    limit = RateLimit(0.1, 1, lambda: 0.0)
    limit.take("me")
    with pytest.raises(Problem) as refused:
        limit.take("me")
    assert refused.value.headers == {"Retry-After": "10"}


@FUZZED
def test_schemathesis_finds_nothing(seconds: float, tmp_path: Path, registered: Registered) -> None:
    assert fuzz(Service(tmp_path, registered).app, SECRETS["admin"][0], 12, seconds=seconds) > 12
