"""Hosts in network namespaces: a run outlives the loss of a node and one that was cut off, without a hand's help."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.hosts import Hosts, several_hosts, wait_until
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.preflight.preparation import prepare

pytestmark = pytest.mark.stack

RATES = [f"optimizer.lr.{part}=1e-4" for part in ("encoders", "projections", "fusion", "heads")]
SETTINGS = [
    "run.name=lost", "tracking.enabled=false", "train.epochs=3", "data.samples_per_epoch=180", "checkpoint.every_steps=5",
    "train.precision=fp64", "encoders.picture.batch_norm=per_sample", *RATES,
    "cluster.workers=2", "cluster.max_failures=4",
]  # fmt: skip
STEPS = 30  # an epoch
# A node that does not answer counts as lost after some seconds.
HEALTH = json.dumps(
    {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 3000,
        "health_check_failure_threshold": 3,
    }
)
NODE = "--block --num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """A head and two nodes of one CPU each, started again where they end."""
    with several_hosts(tmp_path / "hosts", "head", "gpu-1", "gpu-2") as made:
        head = f"--head --port=6379 --node-ip-address={made['head'].address} --include-dashboard=false"
        made["head"].start(f"ray start {head} --system-config='{HEALTH}' {NODE}", tmp_path / "head.log")
        for name in ("gpu-1", "gpu-2"):
            again = f"while true; do ray start --address=head:6379 {NODE} || true; sleep 1; done"
            made[name].start(again, tmp_path / f"{name}.log")
        for name in made.all:
            log = tmp_path / f"{name}.log"
            wait_until(lambda log=log: "Ray runtime started" in log.read_text(), 150, f"{name} starts Ray")
        yield made


@pytest.mark.timeout(560)
def test_a_run_goes_on_without_a_lost_node(hosts: Hosts, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, SETTINGS)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    trace, log = tmp_path / "trace.jsonl", tmp_path / "train.log"
    command = f"python -m services.cli.main train {tmp_path / 'recipe.yaml'} --trace {trace}"
    run = hosts["head"].start(command, log)

    def reached(step: int, timeout_s: float) -> None:
        def there() -> bool:
            assert run.poll() in (None, 0), log.read_text()
            return trace.exists() and len(trace.read_text().splitlines()) >= step

        wait_until(there, timeout_s, f"step {step}\n{log.read_text()}")

    reached(8, 200)
    logs = [file.read_text() for file in (tmp_path / "runs" / "lost" / "logs").iterdir()]
    first, second = sorted(("gpu-1", "gpu-2"), key=lambda name: not any(f"cpu of {name}," in text for text in logs))
    os.kill(hosts[first].processes("/raylet")[0], signal.SIGKILL)  # a worker is on it
    reached(STEPS + 8, 200)
    hosts.cut_off(second)
    reached(2 * STEPS + 8, 200)
    hosts.reconnect(second)
    assert run.wait(200) == 0, log.read_text()

    told = log.read_text()
    lost = f"note: node {first} ({hosts[first].address}) lost, workers restart from epoch 1, attempt 1 of 4"
    assert lost in told, told
    loop = make_loop(prepare(recipe))
    found = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [(step["epoch"], step["step"]) for step in found] == [(e, s) for e in (1, 2, 3) for s in range(1, STEPS + 1)]
    for epoch in (1, 2, 3):
        metrics, _ = loop.run_epoch()
        own = [step["second"]["total"] for step in found if step["epoch"] == epoch]
        assert sum(own) / STEPS == pytest.approx(metrics["loss/total"], rel=1e-6)
