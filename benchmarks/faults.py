"""What happens when something dies: real faults against real runs of `m2can train`, and a table of what they cost.

    python -m benchmarks.faults [--only worker-killed …] [--out benchmarks/results/faults.json]

Every fault hits a run of its own on the generated data set. The run ends by itself or is started again under its name;
every step's losses are compared, digit for digit, with those of a run that nothing happened to; where the number of
workers changes, in double precision, to a millionth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.fault_services import MlflowServer, set_token, three_nodes

EPOCHS, STEPS = 3, 10  # of the small recipe below
SETTINGS: dict[str, Any] = {
    "data": {"pictures": {"resize": 54, "crop": 48}, "texts": {"max_tokens": 64}, "samples_per_epoch": 8 * STEPS},
    "encoders": {
        "text": {"name": "tiny", "hidden": 32, "dropout": 0.0},
        "picture": {"name": "tiny", "width": 4},
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
    "cluster.resize_interval_s=10",
    "checkpoint.every_steps=10",
    f"train.epochs={ELASTIC_EPOCHS}",
    f"data.samples_per_epoch={8 * ELASTIC_STEPS}",
    *(f"optimizer.lr.{part}=1e-4" for part in ("encoders", "projections", "fusion", "heads")),
]
TOLERANCE = 1e-6  # of ELASTIC's losses


@dataclass(frozen=True)
class Finding:
    """One fault and what it cost.

    steps_lost: that were computed twice; -1 where Ray restarted the workers, who trace a step once.
    seconds: the longest pause between two steps that were new, after the fault.
    equal: every step's losses, up to TOLERANCE where the number of workers changed.
    difference: the largest between two of them, relative to 1 or to the loss.
    """

    fault: str
    when: str
    steps_lost: int
    seconds: float
    equal: bool
    difference: float
    said: str


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
        return _read(self.trace) if self.trace.is_file() else []

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
            found |= {(step["epoch"], step["step"]): step for step in _read(trace)}
        return [found[place] for place in sorted(found)]

    def _until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run ended before the fault:\n{self.text()[-2000:]}")
            time.sleep(0.02)


def _read(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines() if line.endswith("}")]


def _named(process: psutil.Process, part: str) -> bool:
    try:
        return part in " ".join(process.cmdline())
    except psutil.Error:
        return False


def worker_killed(folder: Path) -> Iterator[Any]:
    """SIGKILL of a worker within an epoch: Ray starts the workers again."""
    run = Run(folder, "worker-killed")
    run.wait_for_step(2, 7)
    run.workers()[-1].kill()
    yield "epoch 2, step 7", run


def worker_killed_scoring(folder: Path) -> Iterator[Any]:
    """SIGKILL of a worker while the target is scored."""
    run = Run(folder, "worker-killed-scoring")
    run.wait_for_step(2, STEPS)
    run.workers()[-1].kill()
    yield "scoring after epoch 2", run


def worker_stopped(folder: Path) -> Iterator[Any]:
    """SIGSTOP of a worker: the others wait for it cluster.timeout_s, then it is given up."""
    run = Run(folder, "worker-stopped")
    run.wait_for_step(2, 5)
    run.workers()[-1].send_signal(signal.SIGSTOP)
    yield "epoch 2, step 5", run


def driver_killed(folder: Path) -> Iterator[Any]:
    """SIGKILL of the driver; the command is given again."""
    run = Run(folder, "driver-killed")
    run.wait_for_step(2, 6)
    family = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.end()
    psutil.wait_procs(family, timeout=60)
    yield "epoch 2, step 6", Run(folder, "driver-killed")


def terminated(folder: Path) -> Iterator[Any]:
    """SIGTERM: a checkpoint, exit code 143; the command is given again."""
    run = Run(folder, "terminated")
    run.wait_for_step(2, 2)
    run.process.send_signal(signal.SIGTERM)
    code = run.end()
    if code != 143:
        raise RuntimeError(f"exit code {code} instead of 143:\n{run.text()[-2000:]}")
    yield "epoch 2, step 2", Run(folder, "terminated")


def checkpoint_truncated(folder: Path) -> Iterator[Any]:
    """The newest checkpoint is cut short between SIGTERM and the next start: the one before is used."""
    run = Run(folder, "checkpoint-truncated")
    run.wait_for_step(2, 2)
    run.process.send_signal(signal.SIGTERM)
    run.end()
    folders = [p for p in (folder / "runs" / "checkpoint-truncated").glob("checkpoint_*") if p.is_dir()]
    found = sorted(folders, key=lambda p: p.stat().st_mtime)
    weights = found[-1] / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    yield "newest of " + str(len(found)), Run(folder, "checkpoint-truncated")


def checkpoint_unwritable(folder: Path) -> Iterator[Any]:
    """The workers' files may not grow, as on a full disk: the one before stays, and Ray starts the workers again."""
    run = Run(folder, "checkpoint-unwritable")
    run.wait_for_step(2, 5)
    for worker in run.workers():
        worker.rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
    yield "after epoch 2, step 5", run


def worker_killed_uploading(folder: Path) -> Iterator[Any]:
    """SIGKILL of the first worker while its checkpoint is on the way to the run's folder: what is there counts for nothing."""
    run = Run(folder, "worker-killed-uploading", "checkpoint.every_steps=4")
    run.wait_for_step(2, 5)
    writer, known = run.first_worker(), run.checkpoints()
    while not (new := run.checkpoints() - known):
        pass  # the copy takes milliseconds
    writer.kill()
    place = folder / "runs" / run.name / new.pop()
    writer.wait(30)
    files = [file for file in place.rglob("*") if file.is_file()]
    there = sum(file.stat().st_size for file in files)
    yield f"epoch 2, {len(files)} of 7 files of a checkpoint copied ({there:,} bytes)", run


def mlflow_away(folder: Path) -> Iterator[Any]:
    """The MLflow server is killed and comes back before the end."""
    server = MlflowServer(folder / "mlflow")
    server.start()
    try:
        run = Run(folder, "mlflow-away", "tracking.enabled=true", f"tracking.uri={server.uri}")
        run.wait_for_step(1, 3)
        server.kill()
        run.wait_for_step(3, 2)
        server.start()
        yield "away from epoch 1, step 3 to epoch 3, step 2", run
        yield server.what_it_has(run.name)
    finally:
        server.kill()


def node_lost(folder: Path) -> Iterator[Any]:
    """One of three nodes dies with its worker: the run goes on with one worker."""
    with three_nodes() as cluster:
        run = Run(folder, "node-lost", *ELASTIC, f"cluster.address={cluster.address}")
        run.wait_for_step(1, 25)
        cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        yield "epoch 1, step 25", run
        yield _worlds(run)


def node_lost_and_back(folder: Path) -> Iterator[Any]:
    """The node dies and another one joins: the run goes on with one worker, then with two again."""
    with three_nodes() as cluster:
        run = Run(folder, "node-lost-and-back", *ELASTIC, f"cluster.address={cluster.address}")
        run.wait_for_step(1, 25)
        cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        run.wait_for_step(1, 35)
        cluster.add_node(num_cpus=2)
        yield "lost in epoch 1, step 25; another node from step 35 on", run
        yield _worlds(run)


def _worlds(run: Run) -> str:
    """How many workers there were, one after the other."""
    found = re.findall(r"epoch=\d+ step=\d+ \S+: (\d+) workers, this one", run.log(0))
    return "workers: " + ", then ".join(found)


FAULTS = {
    "worker-killed": worker_killed,
    "worker-killed-scoring": worker_killed_scoring,
    "worker-stopped": worker_stopped,
    "driver-killed": driver_killed,
    "terminated": terminated,
    "checkpoint-truncated": checkpoint_truncated,
    "checkpoint-unwritable": checkpoint_unwritable,
    "worker-killed-uploading": worker_killed_uploading,
    "mlflow-away": mlflow_away,
    "node-lost": node_lost,
    "node-lost-and-back": node_lost_and_back,
}


class References:
    """Runs that nothing happened to: of the small recipe, and of ELASTIC on two workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[bool, list[dict[str, Any]]] = {}

    def of(self, elastic: bool) -> list[dict[str, Any]]:
        if elastic not in self._found:
            settings = [*ELASTIC, "cluster.workers=2", "cluster.cpus_per_worker=null"] if elastic else []
            run = Run(self._folder, "undisturbed-elastic" if elastic else "undisturbed", *settings)
            if run.end() != 0:
                raise RuntimeError(run.text()[-3000:])
            self._found[elastic] = run.all_steps()
        return self._found[elastic]


def measure(folder: Path, fault: str, references: References) -> Finding:
    """Let one fault happen and see the run to its end."""
    elastic = fault.startswith("node-")
    reference = references.of(elastic)
    happening = FAULTS[fault](folder)
    when, run = next(happening)
    restarted = run.trace.name != f"{fault}-0.trace"
    seconds = run.longest_pause(stop_at_first=restarted)
    code = run.end()
    if code != 0:
        raise RuntimeError(f"{fault}: exit code {code}\n{run.text()[-3000:]}")
    notes = [
        line for line in run.text().splitlines() if line.startswith(("note: a checkpoint", "note: the checkpoint"))
    ]
    difference = _difference(run.all_steps(), reference)
    said = next(happening, None) or (notes[0].split(":", 1)[1].strip() if notes else "")
    return Finding(
        fault=fault,
        when=when,
        steps_lost=_steps_lost(folder, fault, run, restarted),
        seconds=round(seconds, 1),
        equal=difference <= (TOLERANCE if elastic else 0.0),
        difference=difference,
        said=re.sub(r"/\S*/", "", said),  # files without their folders
    )


def _difference(found: Any, wanted: Any) -> float:
    """The largest difference between the numbers of two nests, relative to 1 or to the number; infinite if they are not alike."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            return math.inf
        return max((_difference(found[key], wanted[key]) for key in wanted), default=0.0)
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return math.inf
        return max((_difference(a, b) for a, b in zip(found, wanted)), default=0.0)
    return float(abs(found - wanted) / max(1.0, abs(wanted)))


def _steps_lost(folder: Path, fault: str, run: Run, restarted: bool) -> int:
    """Steps that were computed twice, as far as the traces show: -1 where Ray restarted the workers within one trace."""
    if not restarted:
        return -1
    before = _read(folder / f"{fault}-0.trace")
    again = {(step["epoch"], step["step"]) for step in run.steps()}
    return sum((step["epoch"], step["step"]) in again for step in before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), default=list(FAULTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_token()
    findings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_recipe(folder)
        references = References(folder)
        print("| fault | when | steps lost | seconds without a new step | all losses equal | said |")
        print("|---|---|---|---|---|---|", flush=True)
        for fault in arguments.only:
            found = measure(folder, fault, references)
            findings.append(asdict(found))
            lost = "" if found.steps_lost < 0 else found.steps_lost
            equal = "yes" if found.equal else "NO"
            print(f"| {fault} | {found.when} | {lost} | {found.seconds} | {equal} | {found.said} |", flush=True)
            if arguments.out:
                write_row(arguments.out, asdict(found))
    sys.exit(0 if all(finding["equal"] for finding in findings) else 1)


def write_row(file: Path, finding: dict[str, Any]) -> None:
    """Put one fault's row in the file; other faults' rows stay."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(file.read_text()) if file.is_file() else []
    rows = [row for row in rows if row["fault"] != finding["fault"]] + [finding]
    rows.sort(key=lambda row: list(FAULTS).index(row["fault"]))
    file.write_text(json.dumps(rows, indent=1) + "\n")


def write_recipe(folder: Path) -> None:
    """Postcards and the small recipe, in a folder."""
    from datasets_manifest.generated import write_postcards

    manifests = [str(path) for path in write_postcards(folder / "postcards", seed=1, train=80, val=20).values()]
    data = {**SETTINGS["data"], "sources": manifests[:-1], "target": manifests[-1]}
    recipe = {**SETTINGS, "data": data, "run": {"storage": str(folder / "runs")}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


if __name__ == "__main__":
    main()
