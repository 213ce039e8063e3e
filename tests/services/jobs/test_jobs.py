"""Jobs on a real Ray head with its dashboard."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from benchmarks.stack_parts import free_ports
from datasets_manifest.errors import InputError
from datasets_manifest.postcards.generate import write_postcards
from services.cli.main import main
from services.jobs.job_request import train_request
from services.jobs.jobs import JobServer, JobsUnavailable
from tests.trainers.tiny_run import small_recipe
from trainers.journal.journal import Journal
from trainers.recipe import make_recipe
from trainers.tracking.registered_models import client_for, find_model


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a head of its own, with the session's token; ended by its process id."""
    port, board, agent, grpc, metrics, client = free_ports(6)
    changes = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (
        tempfile.TemporaryDirectory(prefix="m2r", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in changes.items():
            patch.setenv(name, value)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
            f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={board}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}", f"--temp-dir={folder}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        log = Path(folder) / "head.log"
        with log.open("w") as stream:
            head = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "PATH": path})
        address = f"http://127.0.0.1:{board}"
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    JobServer(address).list_jobs()
                    break
                except JobsUnavailable:
                    assert head.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.5)
            yield address
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(60)


@pytest.mark.slow
def test_a_job_is_submitted_found_read_and_forgotten(dashboard: str, tmp_path: Path) -> None:
    server = JobServer(dashboard)
    missing = {"sources": [str(tmp_path / "a.yaml")], "target": str(tmp_path / "b.yaml")}
    recipe = make_recipe({"data": missing, "run": {"name": "a-run", "storage": str(tmp_path / "runs")}})
    request = train_request("first-job", recipe)
    sizes = []
    assert server.submit(request, on_code=lambda code: sizes.append(code.bytes)).run_name == "a-run"
    assert 0 < sizes[0] < 5_000_000
    with pytest.raises(InputError, match="there is a job of this id"):
        server.submit(request)
    job = server.wait("first-job")
    # The recipe was valid, the data are missing: the preflight on the cluster says so, before training.
    assert job.status == "FAILED"
    assert "a.yaml: no such file" in server.logs("first-job")
    assert "exit code 2" in job.message
    assert [found.id for found in server.list_jobs("FAILED", "a-run")] == ["first-job"]
    assert server.list_jobs("RUNNING") == server.list_jobs(run_name="b-run") == []
    with pytest.raises(InputError, match="--status: is no status; found 'GONE'; wanted PENDING"):
        server.list_jobs("GONE")
    assert server.stop("first-job").status == "FAILED"
    server.delete("first-job")
    assert server.list_jobs() == []
    with pytest.raises(InputError, match="there is no such job"):
        server.get("first-job")


@pytest.mark.slow
def test_the_job_server_refuses_a_wrong_token(dashboard: str) -> None:
    program = "import sys; from services.jobs.jobs import JobServer; JobServer(sys.argv[1]).list_jobs()"
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run([sys.executable, "-c", program, dashboard], env=environment, capture_output=True, text=True)
    assert "JobsUnavailable" in done.stderr and "token" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_address_that_is_given_goes_before_that_of_the_environment(
    dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client does it the other way round, and a job would go to another cluster than the one named."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    monkeypatch.setenv("RAY_ADDRESS", dashboard)
    JobServer().list_jobs()
    with pytest.raises(JobsUnavailable, match=r"at http://127\.0\.0\.1:9"):
        JobServer("http://127.0.0.1:9").list_jobs()
    assert os.environ["RAY_API_SERVER_ADDRESS"] == dashboard
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    JobServer(dashboard).list_jobs()


def test_a_log_that_breaks_off_is_a_known_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, address: str | None) -> None: ...

        async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
            yield "a line"
            raise aiohttp.ClientConnectionError("away")

    async def read() -> list[str]:
        return [lines async for lines in JobServer().follow("a")]

    monkeypatch.setattr("services.jobs.jobs.JobSubmissionClient", Client)
    monkeypatch.setattr(JobServer, "get", lambda server, identity: None)
    with pytest.raises(JobsUnavailable, match="away"):
        asyncio.run(read())


def test_an_address_where_nobody_answers() -> None:
    with pytest.raises(JobsUnavailable, match="is the dashboard up"):
        JobServer("http://127.0.0.1:9").list_jobs()
    with pytest.raises(InputError, match="--address"):
        JobServer("ray://somewhere:10001")


@pytest.mark.slow
def test_a_burst_of_jobs_starts_one_driver(
    dashboard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one runs until it is stopped; the second, which may not run beside it, starts then."""
    file = tmp_path / "recipe.json"
    recipe = small_recipe(tmp_path, ["train.epochs=500", "train.patience=null", "tracking.enabled=false"])
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude={"run": {"name"}})))

    def m2can(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["m2can", "jobs", *words, "--address", dashboard])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    server = JobServer(dashboard)
    for name in ("burst-a", "burst-b"):
        m2can("submit", "train", str(file), "--id", name, "--max-running", "1")

    def until(what: Callable[[], bool], *going_on: str) -> None:
        deadline = time.monotonic() + 150
        while not what():
            logs = [server.logs(name) for name in ("burst-a", "burst-b")]
            assert time.monotonic() < deadline and not any(server.get(name).has_ended for name in going_on), logs
            time.sleep(0.5)

    until(lambda: server.get("burst-b").message.startswith("waits for its turn"), "burst-a", "burst-b")
    words = "waits for its turn: at most 1 of .*'s jobs run at once; before it: burst-a "
    assert re.search(words, m2can("status", "burst-b")) and re.search(words, m2can("list"))
    assert re.search(words, m2can("logs", "burst-b").replace("the job waits", "waits"))
    until(lambda: "epoch 1/500" in server.logs("burst-a"), "burst-a", "burst-b")
    assert "preflight" not in server.logs("burst-b")
    m2can("stop", "burst-a")
    until(lambda: "preflight" in server.logs("burst-b"), "burst-b")
    assert server.get("burst-a").has_ended and "the job's turn has come" in server.logs("burst-b")
    m2can("stop", "burst-b")
    server.wait("burst-b")
    for name in ("burst-a", "burst-b"):
        m2can("delete", name)


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_goes_on_when_it_is_sent_again(dashboard: str, tmp_path: Path) -> None:
    manifests = [str(path) for path in write_postcards(tmp_path / "data", train=24, val=9).values()]
    file = tmp_path / "recipe.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "data": {"sources": manifests[:-1], "target": manifests[-1], "pictures": {"resize": 36, "crop": 32}},
                "encoders": {
                    "text": {"name": "tiny", "weights": "random"},
                    "picture": {"name": "tiny:4", "head": "none", "weights": "random"},
                },
                "train": {"epochs": 6, "batch_size": 4},
                "cluster": {"workers": 1},
                "run": {"name": "twice", "storage": str(tmp_path / "runs")},
                "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "register_as": "m2can-twice"},
            }
        )
    )

    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "services.cli.main", "jobs", *words, "--address", dashboard]

    def submit(identity: str) -> None:
        done = subprocess.run(command("submit", "train", str(file), "--id", identity), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    server = JobServer(dashboard)
    submit("before")
    printed = ""
    with subprocess.Popen(command("logs", "before", "--follow"), stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        for line in follower.stdout:
            printed += line
            if "epoch 1/6  loss" in line:  # the line of a whole epoch; a slow run tells of its steps before
                break
        assert server.get("before").status == "RUNNING", printed  # the lines came while it ran
        with server.client() as client:
            driver = client.get_job_info("before").driver_info
        assert driver is not None, printed
        os.kill(int(driver.pid), signal.SIGKILL)
        follower.communicate(timeout=120)  # ends with the job
    assert follower.returncode == 0
    assert server.wait("before").status == "FAILED"
    journal = Journal(str(tmp_path / "runs" / "twice" / "journal"))
    assert 1 <= len(journal.read()) < 6

    submit("after")
    ended = server.wait("after")
    text = server.logs("after")
    assert ended.status == "SUCCEEDED", text
    assert "epoch 1/6" not in text and "epoch 6/6" in text
    assert [record.epoch for record in journal.read()] == list(range(1, 7))
    assert [job.id for job in server.list_jobs(run_name="twice")] == ["after", "before"]
    registered = find_model(client_for(f"sqlite:///{tmp_path}/mlflow.db"), "m2can-twice")
    assert registered.version == "1" and registered.tags["m2can.job"] == "after"
