"""What happens when something dies: real faults against real runs of `m2can train`, and a table of what they cost.

    python -m benchmarks.faults [--only worker-killed …] [--out benchmarks/results/faults.json]

Every fault hits a run of its own on the generated data set. The run ends by itself or is started again under its name;
every step's losses are compared, digit for digit, with those of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
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


@dataclass(frozen=True)
class Finding:
    """One fault and what it cost.

    steps_lost: that were computed twice; -1 where Ray restarted the workers, who trace a step once.
    seconds: the longest pause between two steps that were new, after the fault. equal: every step's losses.
    """

    fault: str
    when: str
    steps_lost: int
    seconds: float
    equal: bool
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
        command += [part for setting in settings for part in ("--set", setting)]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def steps(self) -> list[dict[str, Any]]:
        """The steps traced so far."""
        return _read(self.trace) if self.trace.is_file() else []

    def wait_for_step(self, epoch: int, step: int) -> None:
        """Until this step is traced."""
        self._until(lambda: any((s["epoch"], s["step"]) >= (epoch, step) for s in self.steps()))

    def longest_pause(self, stop_at_first: bool) -> float:
        """Seconds without a new step: until the first one, or the longest time until the process ends its last epoch."""
        longest, known, since = 0.0, len(self.steps()), time.monotonic()
        while self.process.poll() is None and known < EPOCHS * STEPS:
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


def worker_killed(folder: Path) -> Iterator[tuple[str, Run]]:
    """SIGKILL of a worker within an epoch: Ray starts the workers again."""
    run = Run(folder, "worker-killed")
    run.wait_for_step(2, 7)
    run.workers()[-1].kill()
    yield "epoch 2, step 7", run


def worker_killed_scoring(folder: Path) -> Iterator[tuple[str, Run]]:
    """SIGKILL of a worker while the target is scored."""
    run = Run(folder, "worker-killed-scoring")
    run.wait_for_step(2, STEPS)
    run.workers()[-1].kill()
    yield "scoring after epoch 2", run


def worker_stopped(folder: Path) -> Iterator[tuple[str, Run]]:
    """SIGSTOP of a worker: the others wait for it cluster.timeout_s, then it is given up."""
    run = Run(folder, "worker-stopped")
    run.wait_for_step(2, 5)
    run.workers()[-1].send_signal(signal.SIGSTOP)
    yield "epoch 2, step 5", run


def driver_killed(folder: Path) -> Iterator[tuple[str, Run]]:
    """SIGKILL of the driver; the command is given again."""
    run = Run(folder, "driver-killed")
    run.wait_for_step(2, 6)
    family = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    run.end()
    psutil.wait_procs(family, timeout=60)
    yield "epoch 2, step 6", Run(folder, "driver-killed")


def terminated(folder: Path) -> Iterator[tuple[str, Run]]:
    """SIGTERM: a checkpoint, exit code 143; the command is given again."""
    run = Run(folder, "terminated")
    run.wait_for_step(2, 2)
    run.process.send_signal(signal.SIGTERM)
    code = run.end()
    if code != 143:
        raise RuntimeError(f"exit code {code} instead of 143:\n{run.text()[-2000:]}")
    yield "epoch 2, step 2", Run(folder, "terminated")


def checkpoint_truncated(folder: Path) -> Iterator[tuple[str, Run]]:
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


def checkpoint_unwritable(folder: Path) -> Iterator[tuple[str, Run]]:
    """The workers' files may not grow, as on a full disk: the one before stays, and Ray starts the workers again."""
    run = Run(folder, "checkpoint-unwritable")
    run.wait_for_step(2, 5)
    for worker in run.workers():
        worker.rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
    yield "after epoch 2, step 5", run


FAULTS = {
    "worker-killed": worker_killed,
    "worker-killed-scoring": worker_killed_scoring,
    "worker-stopped": worker_stopped,
    "driver-killed": driver_killed,
    "terminated": terminated,
    "checkpoint-truncated": checkpoint_truncated,
    "checkpoint-unwritable": checkpoint_unwritable,
}


def measure(folder: Path, fault: str, reference: list[dict[str, Any]]) -> Finding:
    """Let one fault happen and see the run to its end."""
    when, run = next(FAULTS[fault](folder))
    restarted = run.trace.name != f"{fault}-0.trace"
    seconds = run.longest_pause(stop_at_first=restarted)
    code = run.end()
    if code != 0:
        raise RuntimeError(f"{fault}: exit code {code}\n{run.text()[-3000:]}")
    notes = [
        line for line in run.text().splitlines() if line.startswith(("note: a checkpoint", "note: the checkpoint"))
    ]
    return Finding(
        fault=fault,
        when=when,
        steps_lost=_steps_lost(folder, fault, run, restarted),
        seconds=round(seconds, 1),
        equal=run.all_steps() == reference,
        said=re.sub(r"/\S*/", "", notes[0].split(":", 1)[1].strip()) if notes else "",  # files without their folders
    )


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
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_recipe(folder)
        undisturbed = Run(folder, "undisturbed")
        if undisturbed.end() != 0:
            raise RuntimeError(undisturbed.text()[-3000:])
        findings = []
        print("| fault | when | steps lost | seconds without a new step | all losses equal | said |")
        print("|---|---|---|---|---|---|", flush=True)
        for fault in arguments.only:
            found = measure(folder, fault, undisturbed.all_steps())
            findings.append(asdict(found))
            lost = "" if found.steps_lost < 0 else found.steps_lost
            equal = "yes" if found.equal else "NO"
            print(f"| {fault} | {found.when} | {lost} | {found.seconds} | {equal} | {found.said} |", flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(findings, indent=1) + "\n")
    sys.exit(0 if all(finding["equal"] for finding in findings) else 1)


def write_recipe(folder: Path) -> None:
    """Postcards and the small recipe, in a folder."""
    from datasets_manifest.generated import write_postcards

    manifests = [str(path) for path in write_postcards(folder / "postcards", seed=1, train=80, val=20).values()]
    data = {**SETTINGS["data"], "sources": manifests[:-1], "target": manifests[-1]}
    recipe = {**SETTINGS, "data": data, "run": {"storage": str(folder / "runs")}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


if __name__ == "__main__":
    main()
