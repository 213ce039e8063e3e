"""The small runs that benchmarks.faults disturbs: their recipes, and `m2can train` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

EPOCHS, STEPS = 3, 10  # of the small recipe below
SETTINGS: dict[str, Any] = {
    "data": {"pictures": {"resize": 54, "crop": 48}, "texts": {"max_tokens": 64}, "samples_per_epoch": 8 * STEPS},
    "encoders": {
        "text": {"name": "tiny:32"},
        "picture": {"name": "tiny:4"},
    },
    "train": {"epochs": EPOCHS, "batch_size": 8, "seed": 1},
    "cluster": {"workers": 2, "timeout_s": 20},
    "checkpoint": {"every_steps": 4},
}


# On the cluster of three nodes: as many steps as it takes to lose a node and to get it back.
ELASTIC_EPOCHS, ELASTIC_STEPS = 3, 80
ELASTIC = [
    "train.precision=fp64",
    "encoders.picture.batch_norm=per_sample",
    "cluster.workers=[1, 2]",
    "cluster.cpus_per_worker=1.5",
    "checkpoint.every_steps=10",
    f"train.epochs={ELASTIC_EPOCHS}",
    f"data.samples_per_epoch={8 * ELASTIC_STEPS}",
    *(f"optimizer.lr.{part}=1e-4" for part in ("encoders", "projections", "fusion", "heads")),
]


class Run:
    """One `m2can train` in a process of its own.

    Args:
        folder: with the recipe; the trace and the output go there.
        name: the run's; the same name goes on where an earlier process ended.
    """

    def __init__(self, folder: Path, name: str, *settings: str) -> None:
        self.folder, self.name = folder, name
        number = len(list(folder.glob(f"{name}-?.trace")))
        self.trace, self.output = folder / f"{name}-{number}.trace", folder / f"{name}-{number}.txt"
        command = [sys.executable, "-m", "services.cli.main", "train", str(folder / "recipe.yaml")]
        command += ["--trace", str(self.trace), "--json", "--set", f"run.name={name}"]
        self.expected = ELASTIC_EPOCHS * ELASTIC_STEPS if ELASTIC[0] in settings else EPOCHS * STEPS
        command += [part for setting in settings for part in ("--set", setting)]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def steps(self) -> list[dict[str, Any]]:
        """The steps traced so far."""
        return read_trace(self.trace) if self.trace.is_file() else []

    def log(self, rank: int) -> str:
        """The log of a worker of this rank, so far."""
        file = self.folder / "runs" / self.name / "logs" / f"rank-{rank}.log"
        return file.read_text() if file.is_file() else ""

    def first_worker(self) -> psutil.Process:
        """The worker that writes the checkpoints."""
        numbers = re.findall(r"process (\d+)$", self.log(0), re.MULTILINE)
        return psutil.Process(int(numbers[-1]))

    def checkpoints(self) -> set[str]:
        folder = self.folder / "runs" / self.name
        return {entry.name for entry in os.scandir(folder) if entry.name.startswith("checkpoint_") and entry.is_dir()}

    def drafts(self) -> set[str]:
        """Checkpoints that are being written."""
        return {
            entry.name
            for entry in os.scandir(self.folder / "runs" / self.name)
            if entry.name.startswith(".checkpoint_")
        }

    def wait_for_step(self, epoch: int, step: int) -> None:
        """Until this step is traced."""
        self._until(lambda: any((s["epoch"], s["step"]) >= (epoch, step) for s in self.steps()))

    def longest_pause(self, stop_at_first: bool) -> float:
        """Seconds without a new step: until the first one, or the longest time until the process ends its last epoch."""
        longest, known, since = 0.0, len(self.steps()), time.monotonic()
        while self.process.poll() is None and known < self.expected:
            time.sleep(0.05)
            now = len(self.steps())
            if now > known:
                longest, known, since = max(longest, time.monotonic() - since), now, time.monotonic()
                if stop_at_first:
                    break
        return longest

    def workers(self) -> list[psutil.Process]:
        """The Ray Train workers, by start."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return sorted((p for p in found if _named(p, "RayTrainWorker")), key=lambda p: p.create_time())

    def end(self, timeout_s: float = 400.0) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.output.read_text()

    def all_steps(self) -> list[dict[str, Any]]:
        """Of all processes that carried the run; a step that was computed again counts as the later one found it."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for trace in sorted(self.folder.glob(f"{self.name}-?.trace")):
            found |= {(step["epoch"], step["step"]): step for step in read_trace(trace)}
        return [found[place] for place in sorted(found)]

    def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run ended before the fault:\n{self.text()[-2000:]}")
            time.sleep(0.02)


def read_trace(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines() if line.endswith("}")]


def _named(process: psutil.Process, part: str) -> bool:
    try:
        return part in " ".join(process.cmdline())
    except psutil.Error:
        return False


def write_recipe(folder: Path) -> None:
    """Postcards and the small recipe, in a folder."""
    from datasets_manifest.postcards.generate import write_postcards

    manifests = [str(path) for path in write_postcards(folder / "postcards", seed=1, train=80, val=20).values()]
    data = {**SETTINGS["data"], "sources": manifests[:-1], "target": manifests[-1]}
    recipe = {**SETTINGS, "data": data, "run": {"storage": str(folder / "runs")}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
