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
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fault_run import ELASTIC, STEPS, Run, read_trace, write_recipe
from benchmarks.fault_services import MlflowServer, set_token, three_nodes

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
    """SIGKILL of the first worker while it writes a checkpoint: the draft in the run's folder counts for nothing."""
    run = Run(folder, "worker-killed-uploading", "checkpoint.every_steps=4")
    run.wait_for_step(2, 5)
    writer = run.first_worker()
    while not (new := run.drafts()):
        pass  # writing takes milliseconds
    writer.kill()
    place = folder / "runs" / run.name / new.pop()
    writer.wait(30)
    files = [file for file in place.rglob("*") if file.is_file()]
    there = sum(file.stat().st_size for file in files)
    yield f"epoch 2, {len(files)} of 7 files of a checkpoint written ({there:,} bytes)", run


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
        return max((_difference(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)
    return float(abs(found - wanted) / max(1.0, abs(wanted)))


def _steps_lost(folder: Path, fault: str, run: Run, restarted: bool) -> int:
    """Steps that were computed twice, as far as the traces show: -1 where Ray restarted the workers within one trace."""
    if not restarted:
        return -1
    before = read_trace(folder / f"{fault}-0.trace")
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


if __name__ == "__main__":
    main()
