"""Hosts in network namespaces, made a cluster by the commands of docs/cluster.md: jobs from a laptop, nodes that are lost,
cut off and drained while a run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tests.hosts import ROOT, Hosts, several_hosts, wait_until
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.preflight.preparation import prepare
from trainers.recipe import Recipe

pytestmark = [pytest.mark.stack, pytest.mark.hosts, pytest.mark.timeout(560)]

NODES = ("gpu-1", "gpu-2")
RATES = [f"optimizer.lr.{part}=1e-4" for part in ("encoders", "projections", "fusion", "heads")]
EXACT = ["tracking.enabled=false", "train.precision=fp64", "encoders.picture.batch_norm=per_sample", *RATES]
STEPS = 30  # an epoch
TOKEN = {"RAY_AUTH_MODE": "token"}
# An object store on the head, of which nodes and commands know by their environment.
STORE = {
    "AWS_ENDPOINT_URL": "http://head:5555", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
# Beside what the document says: hosts of one CPU, and a node that does not answer counts as lost after some seconds.
SMALL = "--num-cpus=1 --object-store-memory=80000000"
HEALTH = json.dumps(
    {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 3000,
        "health_check_failure_threshold": 3,
    }
)


def documented(start: str) -> str:
    """The command of docs/cluster.md that begins so."""
    (found,) = re.findall(rf"^{re.escape(start)}.*$", (ROOT / "docs" / "cluster.md").read_text(), re.M)
    return str(found)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head, two nodes that are started again where they end, and a laptop."""
    folder = tmp_path_factory.mktemp("hosts")
    with several_hosts(folder, "head", *NODES, "laptop") as made:
        head, log = made["head"], folder / "head.log"
        head.run(documented("(umask 077"))
        head.start(
            f"{documented('RAY_AUTH_MODE=token ray start --head')} --system-config='{HEALTH}' {SMALL}", log, **STORE
        )
        # There is no ssh here: what it would run on the other host is run in that host's home.
        remote = folder / "bin" / "ssh"
        remote.parent.mkdir()
        remote.write_text(f'#!/bin/sh\ncd {folder}/"$1" && HOME="$PWD" exec sh -c "$2"\n')
        remote.chmod(0o755)
        for name in NODES:
            copy = documented("ssh gpu-1 'install").replace("gpu-1", name)
            head.run(copy, PATH=f"{remote.parent}:{os.environ['PATH']}")
        wait_until(lambda: "Ray runtime started" in log.read_text(), 150, "head starts Ray")
        node = documented("RAY_AUTH_MODE=token ray start --address")
        for name in NODES:
            made[name].start(f"while true; do {node} {SMALL} || true; sleep 1; done", folder / f"{name}.log", **STORE)
        for name in NODES:
            wait_until(
                lambda name=name: "runtime started" in (folder / f"{name}.log").read_text(), 150, f"{name} starts"
            )
        refused = made["laptop"].start("m2can jobs list --address http://head:8265", **TOKEN)
        said, _ = refused.communicate(timeout=60)
        assert refused.returncode == 1 and f"no token here: {made['laptop'].home}/.ray/auth_token is not there" in said
        copy = documented("ssh gpu-1 'install").replace("gpu-1", "laptop")
        head.run(copy, PATH=f"{remote.parent}:{os.environ['PATH']}")
        yield made


@dataclass
class Run:
    """A run of `m2can train` on the head."""

    recipe: Recipe
    folder: Path
    process: subprocess.Popen[str]

    @property
    def said(self) -> str:
        return (self.folder / "train.log").read_text()

    def steps(self) -> list[dict[str, object]]:
        trace = self.folder / "trace.jsonl"
        return [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []

    def wait(self, true: Callable[[], object], what: str) -> None:
        def is_so() -> object:
            assert self.process.poll() in (None, 0), self.said
            return true()

        wait_until(is_so, 200, f"{what}\n{self.said}")

    def wait_for_step(self, number: int) -> None:
        self.wait(lambda: len(self.steps()) >= number, f"step {number}")

    def a_worker_s_node(self) -> str:
        """One that has a worker; where there are three hosts and two workers that do not fit on one of them, there is one."""

        def found() -> list[str]:
            logs = "".join(file.read_text() for file in (self.folder / "runs").glob("*/logs/*"))
            return [name for name in NODES if f"cpu of {name}," in logs]

        self.wait(found, "a worker's log names its node")
        return found()[0]

    def require_losses_of_a_run_that_nothing_happened_to(self) -> None:
        loop, found = make_loop(prepare(self.recipe)), self.steps()
        epochs = len(found) // STEPS
        numbers = [(step["epoch"], step["step"]) for step in found]
        assert numbers == [(epoch, step) for epoch in range(1, epochs + 1) for step in range(1, STEPS + 1)]
        for epoch in range(1, epochs + 1):
            metrics, _ = loop.run_epoch()
            own = [step["second"]["total"] for step in found if step["epoch"] == epoch]  # type: ignore[index]
            assert sum(own) / STEPS == pytest.approx(metrics["loss/total"], rel=1e-6)


def train(hosts: Hosts, folder: Path, *settings: str) -> Run:
    shape = [f"data.samples_per_epoch={6 * STEPS}", "cluster.workers=2", "run.name=lost"]
    recipe = small_recipe(folder, [*EXACT, *shape, *settings])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = f"python -m services.cli.main train {folder / 'recipe.yaml'} --trace {folder / 'trace.jsonl'}"
    return Run(recipe, folder, hosts["head"].start(command, folder / "train.log", **TOKEN, **STORE))


def lose_node(hosts: Hosts, name: str) -> None:
    """Kill the node, unless it has ended by itself, and wait until it is back."""
    log = hosts[name].home.parent / f"{name}.log"
    starts = log.read_text().count("runtime started")
    for process in hosts[name].processes("/raylet"):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: log.read_text().count("runtime started") > starts, 150, f"{name} comes back")


def test_the_document_s_commands(hosts: Hosts, tmp_path: Path) -> None:
    laptop = hosts["laptop"]
    for host in hosts.all.values():
        token = host.home / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text() == (hosts["head"].home / ".ray" / "auth_token").read_text()
    recipe = small_recipe(tmp_path, ["tracking.enabled=false", "train.epochs=1"])
    (laptop.home / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    page = (ROOT / "docs" / "cluster.md").read_text()
    (block,) = re.findall(r"```sh \{\.cluster\}\n(export RAY_AUTH_MODE.*?)```", page, re.S)
    said = laptop.run(block, timeout_s=300)
    assert "the cluster can hold 2 worker(s) of 0.75 CPU each; free now: " in said
    assert "epoch 1/1" in said
    assert re.search(r"^train-shop-1 +SUCCEEDED", said, re.M), said
    assert "train-shop-1  deleted" in said
    assert "(raylet)" not in said


def test_a_job_that_waits_says_for_what_and_who_has_it(hosts: Hosts, tmp_path: Path) -> None:
    laptop, reach = hosts["laptop"], {**TOKEN, "RAY_API_SERVER_ADDRESS": "http://head:8265"}
    large = ["cluster.workers=2", "cluster.cpus_per_worker=0.9", "cluster.grace_s=5", "train.epochs=200"]
    recipe = small_recipe(tmp_path, ["tracking.enabled=false", *large])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    def jobs(words: str) -> str:
        return laptop.run(f"m2can jobs {words}", **reach)

    jobs(f"submit train {tmp_path / 'recipe.yaml'} --id first")
    wait_until(lambda: "step 1/" in jobs("logs first"), 150, "the first job trains")
    jobs(f"submit train {tmp_path / 'recipe.yaml'} --id second")
    wait_until(lambda: "note: the run waits" in jobs("logs second"), 150, "the second job says that it waits")
    said = jobs("logs second")
    assert re.search(r"free now: [\d.]+ of 3 CPU; the run waits until others give back what it needs", said), said
    waits = r"waits for resources: needs 1.8 CPU; [\d.]+ of 3 CPU are free; first has 1.8 CPU"
    assert re.search(f"note: the run {waits}", said), said
    assert re.search(f"^message +{waits}", jobs("status second"), re.M)
    assert re.search(f"^second +RUNNING .*\n    {waits}", jobs("list"), re.M)
    for identity in ("second", "first"):
        jobs(f"stop {identity}")
        wait_until(lambda name=identity: "STOPPED" in jobs(f"status {name}"), 60, f"{identity} ends")


def test_a_node_that_is_drained(hosts: Hosts, tmp_path: Path) -> None:
    run = train(hosts, tmp_path, "train.epochs=5", "cluster.max_failures=0")
    run.wait_for_step(8)
    name = run.a_worker_s_node()
    listed = hosts["head"].run("ray list nodes --format=json", **TOKEN)
    begins = re.search(r"\[\s*\{", listed)
    assert begins, listed
    nodes, _ = json.JSONDecoder().raw_decode(listed[begins.start() :])
    number = next(
        node["node_id"] for node in nodes if node["node_ip"] == hosts[name].address and node["state"] == "ALIVE"
    )
    drain = documented("ray drain-node").replace("seconds=60", "seconds=10")
    hosts["head"].run(drain, NODE=number, **TOKEN)
    run.wait(lambda: "is drained: the workers write a checkpoint" in run.said, "the drain is told")
    assert run.process.wait(300) == 0, run.said
    assert re.search(rf"note: node {name} \([\d.]+\) drained, workers restart from epoch \d\n", run.said), run.said
    lose_node(hosts, name)
    log = (tmp_path / "runs" / "lost" / "logs" / "rank-0.log").read_text()
    assert "goes on from" in log, log  # the recipe asks for no checkpoint within an epoch
    run.require_losses_of_a_run_that_nothing_happened_to()


def test_a_run_in_an_object_store_shares_no_folder(hosts: Hosts, tmp_path: Path) -> None:
    """Each host has its own home and so its own working copy. A node that has a worker is lost meanwhile."""
    head = hosts["head"]
    head.start("moto_server -H 0.0.0.0 -p 5555", tmp_path / "store.log", **STORE)
    wait_until(lambda: "Running on" in (tmp_path / "store.log").read_text(), 60, "the store starts")
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='runs')"
    head.run(f'python -c "{make}"', **STORE, AWS_DEFAULT_REGION="us-east-1")
    run = train(
        hosts,
        tmp_path,
        "run.storage=s3://runs/shop",
        "train.epochs=6",
        "checkpoint.every_steps=5",
        "cluster.max_failures=2",
    )
    run.wait_for_step(8)
    workers = [name for name in NODES if (hosts[name].home / ".cache/m2can/work").is_dir()]
    assert workers, run.said
    lose_node(hosts, workers[0])
    assert run.process.wait(250) == 0, run.said
    lost = rf"note: node {workers[0]} \([\d.]+\) lost, workers restart from epoch \d, attempt 1 of 2"
    assert re.search(lost, run.said), [line for line in run.said.splitlines() if line.startswith(("note:", "epoch"))]
    assert not (tmp_path / "runs").exists()
    listed = hosts["laptop"].run("m2can runs list --storage s3://runs/shop", **STORE)
    assert re.search(r"^lost .* finished +epoch 6/6", listed), listed
    here = run.recipe.run.model_copy(update={"storage": str(tmp_path / "here")})
    replace(run, recipe=run.recipe.model_copy(update={"run": here})).require_losses_of_a_run_that_nothing_happened_to()


def test_a_run_goes_on_without_a_lost_node(hosts: Hosts, tmp_path: Path) -> None:
    run = train(hosts, tmp_path, "train.epochs=3", "checkpoint.every_steps=5", "cluster.max_failures=4")
    run.wait_for_step(8)
    first = run.a_worker_s_node()
    (second,) = {*NODES} - {first}
    os.kill(hosts[first].processes("/raylet")[0], signal.SIGKILL)
    run.wait_for_step(STEPS + 8)
    hosts.cut_off(second)
    run.wait_for_step(2 * STEPS + 8)
    hosts.reconnect(second)
    assert run.process.wait(200) == 0, run.said
    lost = f"note: node {first} ({hosts[first].address}) lost, workers restart from epoch 1, attempt 1 of 4"
    assert lost in run.said, run.said
    run.require_losses_of_a_run_that_nothing_happened_to()
