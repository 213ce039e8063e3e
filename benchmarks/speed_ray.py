"""An epoch of `m2can train` against the same loop without Ray, and the time from the command to the first step."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.loops import one_worker
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.plan import StepSlice
from datasets_manifest.stream.source import FeatureBatch
from trainers.compute.device_batches import make_encoding, step_batches
from trainers.loop.loop import Loop
from trainers.preflight.preparation import prepare
from trainers.recipe import Recipe
from trainers.recipe.demo import demo_recipe


def postcards_recipe(folder: Path, epochs: int) -> Recipe:
    manifests = write_postcards(folder / "postcards", seed=0, train=960, val=60)
    settings = [
        "encoders.picture.name=tiny",
        "uacr.warmup=1",
        "uacr.start=1",
        "uacr.threshold=0",
        f"train.epochs={epochs}",
    ]
    return demo_recipe(manifests, [*settings, "cluster.workers=1", f"run.storage={folder / 'runs'}"])


def measure_ray(epochs: int, repeats: int) -> dict[str, Any]:
    """An epoch of `m2can train` with one worker against the same loop without Ray, in turns; and the start.

    `ray`: one plain process reads and encodes for the other loop, beside it. `ray_ready`: its batches are ready.
    `ray_data`: it makes them itself.
    """
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = postcards_recipe(folder, epochs)
        (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
        for turn in range(repeats):
            found: dict[str, list[float]] = dict(bare_epochs(recipe, epochs))
            began = time.time()
            found["start"] = [seconds_to_first_step(folder, f"run{turn}")]
            run = folder / "runs" / f"run{turn}"
            first_line = (run / "logs" / "rank-0.log").read_text()[:19]
            found["worker_began"] = [datetime.strptime(first_line, "%Y-%m-%d %H:%M:%S").timestamp() - began]
            records = [json.loads(file.read_text())["metrics"] for file in sorted((run / "journal").glob("*"))]
            found["ours"] = [record["time/train_s"] for record in records[1:]]
            for name, seconds in found.items():
                times.setdefault(name, []).extend(seconds)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    others = {"ray": "beside", "ray_ready": "ready", "ray_data": "itself"}
    median["itself"] = median["ready"] + median["making"]
    return {
        name: {
            "ours": median["ours"],
            "theirs": median[other],
            "ratio": median["ours"] / median[other] - 1,
            "unit": "s",
        }
        for name, other in others.items()
    } | {
        "start": {
            "ours": median["start"],
            "ratio": median["start"],
            "unit": "s",
            "worker_began": median["worker_began"],
        }
    }


def seconds_to_first_step(folder: Path, name: str) -> float:
    """From the command `m2can train` with the folder's recipe until its first step is done; returns when the run ends.

    Raises:
        RuntimeError: the command failed.
    """
    trace = folder / f"{name}.jsonl"
    command = [sys.executable, "-m", "services.cli.main", "train", str(folder / "recipe.json"), "--trace", str(trace),
               "--set", f"run.name={name}"]  # fmt: skip
    settings = os.environ | {"RAY_ADDRESS": "local"}
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=settings) as process:
        while process.poll() is None and not (trace.is_file() and trace.stat().st_size):
            time.sleep(0.02)
        first_step = time.monotonic() - began
        error = process.communicate()[1].decode()
    if process.returncode:
        raise RuntimeError(error[-2000:])
    return first_step


def bare_epochs(recipe: Recipe, epochs: int) -> dict[str, list[float]]:
    """Seconds of the epochs after the first, steps on one thread.

    Returns:
        `making` its batches, its steps over batches that are `ready`, and its steps with a process `beside` them that
        makes the batches meanwhile.
    """
    torch.set_num_threads(1)
    loop = one_worker(prepare(recipe.model_copy(deep=True)), None)
    loop.batches.source = LocalStream(loop.corpus.table)
    times: dict[str, list[float]] = {"making": [], "ready": [], "beside": []}
    for _ in range(epochs):
        slices = list(loop.plan().worker_steps(0, 1))
        encoding = make_encoding(loop.recipe, loop.card.vocabulary, epoch=loop.epoch, strong=True)
        before = loop.state()
        started = time.perf_counter()
        batches = list(loop.batches.source.train(slices, encoding))
        times["making"].append(time.perf_counter() - started)
        with made_beside(loop, slices, encoding) as fed:
            times["beside"].append(seconds_of_steps(loop, slices, fed))
        loop.step.number = before.step  # the same steps of the schedule again
        times["ready"].append(seconds_of_steps(loop, slices, batches))
        loop.select_pseudo_labels(loop.score())
        loop.epoch += 1
    return {name: found[1:] for name, found in times.items()}


def seconds_of_steps(loop: Loop, slices: list[StepSlice], batches: Iterable[HostBatch | FeatureBatch]) -> float:
    started = time.perf_counter()
    for slice_, (_, batch) in zip(slices, step_batches(slices, batches, loop.device, loop.dtype), strict=True):
        loop.run_step(slice_, batch)
    return time.perf_counter() - started


@contextlib.contextmanager
def made_beside(loop: Loop, slices: list[StepSlice], encoding: Encoding) -> Iterator[Iterator[HostBatch]]:
    """The batches of `slices` from one process that stays a few of them ahead. Its start is not part of what follows."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(maxsize=8)
    process = context.Process(target=make_batches, args=(queue, loop.corpus.table, slices, encoding))
    process.start()
    try:
        queue.get()
        yield (queue.get() for _ in slices)
    finally:
        process.join()


def make_batches(queue: Any, table: pa.Table, slices: list[StepSlice], encoding: Encoding) -> None:
    """What the process beside does; tells first that it is there."""
    queue.put("ready")
    for host in LocalStream(table).train(slices, encoding):
        queue.put(host)
