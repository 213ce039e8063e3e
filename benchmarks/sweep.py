"""A sweep whose trials share features: what a trial costs.  python -m benchmarks.sweep [--trials N] [--out FILE]

Postcards, 1,200 training records of each of three domains, two frozen encoders, ten epochs a trial, one worker a trial. Processor
seconds are those of all processes that the command started, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import yaml

from datasets_manifest.postcards.generate import write_postcards

TRAIN, VAL, EPOCHS = 1200, 100, 10
_MARK = "M2CAN_BENCHMARK"  # in the environment of what the command starts
_EVERY_S = 0.5


class ProcessorTime:
    """Seconds of all processes with a mark in their environment, dead ones as they were last seen."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.seconds: dict[tuple[int, float], float] = {}

    def look(self) -> float:
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.mark:
                    times = process.cpu_times()
                    self.seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self.seconds.values())


def write_files(folder: Path, trials: int) -> Path:
    """The sweep's file. Its encoders are random: what they know does not matter here."""
    sources = [str(path) for path in write_postcards(folder / "cards", train=TRAIN, val=VAL).values()]
    recipe = {
        "data": {"sources": sources[:-1], "target": sources[-1], "pictures": {"resize": 54, "crop": 48}},
        "encoders": {"text": {"name": "tiny:384", "freeze": "all"}, "picture": {"name": "tiny:64", "freeze": "all"}},
        "train": {"epochs": EPOCHS},
        "tracking": {"enabled": False},
        "run": {"storage": str(folder / "runs")},
    }
    space = {"uacr.start": {"low": 0.1, "high": 0.6}, "objective.mcc": {"low": 0.05, "high": 2.0, "log": True}}
    sweep = {"name": "shared", "recipe": recipe, "algorithm": "random", "trials": trials, "space": space}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return folder / "sweep.yaml"


def measure(folder: Path, trials: int) -> dict[str, Any]:
    mark = uuid.uuid4().hex
    used = ProcessorTime(mark)
    command = [sys.executable, "-m", "services.cli.main", "tune", str(write_files(folder, trials))]
    log = folder / "stderr"
    with log.open("w") as errors:
        running = subprocess.Popen(command, env=os.environ | {_MARK: mark}, stdout=errors, stderr=errors)
        started, begun, ended = time.monotonic(), (0.0, 0.0), (0.0, 0.0)
        while running.poll() is None:
            time.sleep(_EVERY_S)
            now = (time.monotonic() - started, used.look())
            said = log.read_text()
            if not begun[0] and "trials train on features" in said:
                begun = now
            if len(re.findall(r"  ended, score", said)) < trials:
                ended = now
    if running.returncode:
        raise RuntimeError(log.read_text()[-3000:])
    each = (ended[1] - begun[1]) / trials
    return {
        "trials": trials,
        "epochs": EPOCHS,
        "rows": 3 * TRAIN,
        "cpus": os.cpu_count(),
        "features_cpu_s": round(begun[1], 1),
        "trial_cpu_s": round(each, 1),
        "trials_s": round(ended[0] - begun[0], 1),
        "trials_per_minute": round(60 * trials / (ended[0] - begun[0]), 1),
        "hundred_trials_cpu_minutes": round(100 * each / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.trials)
    print(json.dumps(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
