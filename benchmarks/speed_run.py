"""Data, epochs, Ray, workers and start: what surrounds a step, against the baseline or against less of itself."""

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
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.baseline import PaddedSamples, baseline_network, load, loaded_batch
from benchmarks.speed_step import Size, interleaved, make_labels, make_network, make_rows, make_step, recipe_of
from benchmarks.streaming import encoding_of, table_of, write_pictures
from datasets_manifest.encode import HostBatch, collate, encode_rows, index_table
from datasets_manifest.generated import write_postcards
from datasets_manifest.images import IMAGENET_STD, PictureViews
from datasets_manifest.local import LocalStream
from datasets_manifest.stream import Share, Stream
from trainers.connect import start_ray
from trainers.demo import demo_recipe
from trainers.inputs import make_encoding, normalise, to_batch
from trainers.loop import Loop, Observer
from trainers.m2can.collective import Collective, DistributedCollective
from trainers.m2can.refinement import score_samples
from trainers.recipe import Recipe, make_recipe
from trainers.run import Prepared, prepare

CPU = torch.device("cpu")
JPEG = (1024, 768)
GREY_LEVELS = 6.0  # how far the sides' weak views may be apart on the mean: decoders and resizing differ


def measure_data(pictures: int, repeats: int) -> dict[str, Any]:
    """Pictures a second of one core, both views of each JPEG of 1024×768."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), pictures, JPEG)
        table, encoding = table_of(paths, pictures), encoding_of(PictureViews())
        index = index_table(np.zeros(pictures), np.arange(pictures), np.zeros(pictures))
        samples = PaddedSamples(table["texts"].to_pylist(), table["images"].to_pylist(), encoding)
        torch.set_num_threads(1)

        def ours() -> HostBatch:
            return collate(encode_rows(index, table, encoding), encoding.pictures.crop, encoding.vocabulary.pad_id)

        def theirs() -> list[Any]:
            return list(load(samples, [np.arange(pictures)], workers=0))

        weak = normalise(torch.from_numpy(ours().pictures[:pictures]), torch.float32)
        apart = (weak - theirs()[0][2][:, 0, 0]).abs().mean(dim=(0, 2, 3)) * 255 * torch.tensor(IMAGENET_STD)
        if float(apart.max()) > GREY_LEVELS:
            raise RuntimeError(f"the sides' weak views are {float(apart.max()):.1f} grey levels apart")
        times = interleaved({"ours": ours, "theirs": theirs}, repeats, CPU)
    rate = {name: pictures / seconds for name, seconds in times.items()}
    return {
        **rate,
        "ratio": rate["ours"] / rate["theirs"],
        "unit": "pictures/s a core",
        "grey_levels": float(apart.max()),
    }


def write_reviews(folder: Path, rows: int) -> list[Path]:
    """Three domains of JPEGs of 1024×768 and texts of 25 words."""
    random, found = np.random.default_rng(0), []
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        paths = write_pictures(folder / name, rows, JPEG)
        lines = [
            {"id": f"{name}{n}", "label": n % 3, "image": [Path(path).name],
             "text": [" ".join(f"word{k}" for k in random.integers(0, 500, 25))]}
            for n, path in enumerate(paths)
        ]  # fmt: skip
        (folder / name / "rows.json").write_text(json.dumps(lines))
        splits = {split: {"records": "rows.json"} for split in ("train", "val")}
        manifest = {"schema_version": 1, "name": name, "classes": ["x", "y", "z"], "splits": splits}
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
        found.append(folder / name / "manifest.json")
    return found


def small_recipe(manifests: list[Path], storage: Path) -> Recipe:
    return make_recipe(
        {
            "preset": "published",
            "data": {
                "sources": [str(m) for m in manifests[:-1]],
                "target": str(manifests[-1]),
                "pictures": {"resize": 110, "crop": 96},
            },
            "encoders": {
                "text": {"name": "tiny", "weights": "random", "dropout": 0.0},
                "picture": {"name": "tiny", "width": 8, "head": "none", "weights": "random"},
            },
            "uacr": {"start": 1.0},
            "train": {"epochs": 4, "batch_size": 8},
            "run": {"storage": str(storage)},
        }
    )


def make_loop(prepared: Prepared, source: Any) -> Loop:
    return Loop(
        prepared.card, prepared.corpus, labels=prepared.corpus.labels, source=source, collective=Collective(),
        device=CPU, observer=Observer(),
    )  # fmt: skip


@contextlib.contextmanager
def both_loops(rows: int) -> Iterator[tuple[Loop, Loop, int]]:
    """Ours on Ray Data, one for the other side, and the CPUs that each side has."""
    torch.set_num_threads(1)
    cpus = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(small_recipe(write_reviews(Path(folder) / "data", rows), Path(folder)))
        start_ray(None)
        loop = make_loop(prepared, Stream(ray.put(prepared.corpus.table), Share(cpus=cpus)))
        yield loop, make_loop(prepared, LocalStream(prepared.corpus.table)), cpus
        ray.shutdown()


def measure_epoch(rows: int, repeats: int) -> dict[str, Any]:
    """Data, steps of all three domains and the pseudo-label pass, with small encoders, on this machine's cores."""
    with both_loops(rows) as (loop, other, cpus):
        theirs = baseline_network(other.network)
        step = make_step(theirs, loop.recipe, CPU, ordinary=True)
        for each in (loop, other):  # an epoch without the target
            each.run_epoch()

        def epoch() -> None:
            baseline_steps(other, theirs, step, cpus)
            baseline_scores(other, theirs, cpus)

        times = interleaved({"ours": loop.run_epoch, "theirs": epoch}, repeats, CPU)
    return {**times, "ratio": times["theirs"] / times["ours"], "unit": "s", "rows": rows}


def measure_scoring_pass(rows: int, repeats: int) -> dict[str, Any]:
    """The target's rows from files to scores, on this machine's cores: samples a second."""
    with both_loops(rows) as (loop, other, cpus):
        theirs = baseline_network(other.network)
        part = loop.corpus.train[-1].rows
        weak = make_encoding(loop.recipe, loop.card.vocabulary)
        size = loop.recipe.train.eval_batch_size

        @torch.inference_mode()
        def score() -> None:
            loop.network.eval()
            parts = [part[i : i + size] for i in range(0, len(part), size)]
            for rows_N, host in zip(parts, loop.source.evaluate(parts, weak)):
                batch = to_batch(host, np.full((1, len(rows_N)), -1), device=CPU, dtype=torch.float32)
                score_samples(loop.network(batch).logits_HQDBC[:, 0, 0])

        score()
        times = interleaved({"ours": score, "theirs": lambda: baseline_scores(other, theirs, cpus)}, repeats, CPU)
    rate = {name: rows / seconds for name, seconds in times.items()}
    return {**rate, "ratio": rate["ours"] / rate["theirs"], "unit": "samples/s"}


def baseline_steps(loop: Loop, network: Any, step: Any, workers: int) -> None:
    """The steps of the loop's plan."""
    table, plan = loop.corpus.table, loop.plan()
    slices = list(plan.worker_steps(0, 1))
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    network.text_encoder.calls = 2 * plan.num_domains
    strong = make_encoding(loop.recipe, loop.card.vocabulary, epoch=loop.epoch, strong=True)
    batches = [s.rows_DB.ravel() for s in slices]
    for slice_, loaded in zip(slices, load(PaddedSamples(texts, images, strong), batches, workers)):
        step(loaded_batch(loaded, slice_.labels_DB))


def baseline_scores(loop: Loop, network: Any, workers: int) -> None:
    """All target rows scored."""
    table = loop.corpus.table
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    rows, size = loop.corpus.train[-1].rows, loop.recipe.train.batch_size
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    network.eval()
    network.text_encoder.calls = 1
    weak = make_encoding(loop.recipe, loop.card.vocabulary)
    with torch.inference_mode():
        for part, loaded in zip(parts, load(PaddedSamples(texts, images, weak), parts, workers)):
            outputs = network(loaded_batch(loaded, np.full((1, len(part)), -1)))
            score_samples(outputs.logits_HQDBC[:, 0, 0])
    network.train()


def postcards_recipe(folder: Path, epochs: int) -> Recipe:
    manifests = write_postcards(folder / "postcards", seed=0, train=960, val=60)
    settings = [
        "encoders.picture.width=16",
        "uacr.warmup=1",
        "uacr.start=1",
        "uacr.threshold=0",
        f"train.epochs={epochs}",
    ]
    return demo_recipe(manifests, [*settings, "cluster.workers=1", f"run.storage={folder / 'runs'}", "run.name=speed"])


def measure_ray(epochs: int) -> dict[str, Any]:
    """An epoch of `m2can train` with one worker against the same loop in one process; and the start.

    `ray`: the other loop's batches are ready; `ray_data`: it reads and encodes them itself.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = postcards_recipe(folder, epochs)
        (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
        began, wall = time.monotonic(), time.time()
        trace = folder / "trace.jsonl"
        command = [
            sys.executable,
            "-m",
            "services.cli.main",
            "train",
            str(folder / "recipe.json"),
            "--trace",
            str(trace),
        ]
        environment = os.environ | {"RAY_ADDRESS": "local"}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
            while process.poll() is None and not (trace.is_file() and trace.stat().st_size):
                time.sleep(0.02)
            first_step = time.monotonic() - began
            error = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(error.decode()[-2000:])
        run = folder / "runs" / "speed"
        worker = (
            datetime.strptime((run / "logs" / "rank-0.log").read_text()[:19], "%Y-%m-%d %H:%M:%S").timestamp() - wall
        )
        records = [json.loads(file.read_text())["metrics"] for file in sorted((run / "journal").glob("*"))]
        ours = statistics.median(r["time/train_s"] for r in records[1:])
        loop = make_loop(prepare(recipe.model_copy(deep=True)), None)
        loop.source = LocalStream(loop.corpus.table)
        ready, reading = bare_epochs(loop, epochs)
    return {
        "ray": {"ours": ours, "theirs": ready, "ratio": ours / ready - 1, "unit": "s"},
        "ray_data": {"ours": ours, "theirs": reading, "ratio": ours / reading - 1, "unit": "s"},
        "start": {"ours": first_step, "ratio": first_step, "unit": "s", "worker_began": worker},
    }


def bare_epochs(loop: Loop, epochs: int) -> tuple[float, float]:
    """Median seconds of an epoch's steps after the first, on one thread: over batches that are ready, and with their making."""
    torch.set_num_threads(1)
    ready, whole = [], []
    for _ in range(epochs):
        slices = list(loop.plan().worker_steps(0, 1))
        encoding = make_encoding(loop.recipe, loop.card.vocabulary, epoch=loop.epoch, strong=True)
        began = time.perf_counter()
        batches = list(loop.source.train(slices, encoding))
        started = time.perf_counter()
        for slice_, host in zip(slices, batches):
            loop.run_step(slice_, host)
        ended = time.perf_counter()
        ready.append(ended - started)
        whole.append(ended - began)
        loop._select(loop._score())
        loop.epoch += 1
    return statistics.median(ready[1:]), statistics.median(whole[1:])


WORKERS_SIZE = Size("tiny", 64, 64, 1, 500, 16, 64)


def measure_workers(steps: int) -> dict[str, Any]:
    """Steps a second of two workers with one thread each, against one worker with one thread; batches are ready.

    `workers_machine`: the same two on a machine of their own, so to say: processes that exchange nothing, against one.
    """
    one, two = seconds_of_workers(1, steps, exchange=True), seconds_of_workers(2, steps, exchange=True)
    apart = seconds_of_workers(2, steps, exchange=False)
    return {
        "workers": {"ours": two, "theirs": one, "ratio": one / two, "unit": "s"},
        "workers_machine": {"ours": apart, "theirs": one, "ratio": one / apart, "unit": "s"},
    }


def seconds_of_workers(world: int, steps: int, exchange: bool) -> float:
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(world) as pool:
        tasks = [(rank, world, f"{folder}/store", steps, exchange) for rank in range(world)]
        return max(pool.starmap(timed_steps, tasks, chunksize=1))


def timed_steps(rank: int, world: int, store: str, steps: int, exchange: bool) -> float:
    """Median seconds of a step on this worker's slice of the same global batch."""
    torch.set_num_threads(1)
    size, recipe = WORKERS_SIZE, recipe_of(WORKERS_SIZE, "published")
    network = make_network(size, recipe)
    step = make_step(network, recipe, CPU)
    if exchange and world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        step.collective = DistributedCollective()
        assert step.groups is not None
        step.groups.collective = step.collective
        step.model = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    part = size.batch // world
    host = make_rows(size, 2, (size.sources + 1) * part, seed=rank)
    labels_DB = make_labels(replace(size, batch=part), seed=rank)
    place: dict[str, Any] = {"offset": rank * part, "global_batch": size.batch} if exchange else {}
    batch = to_batch(host, labels_DB, device=CPU, dtype=torch.float32, **place)
    times = []
    for _ in range(2 + steps):
        started = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - started)
    if exchange and world > 1:
        dist.destroy_process_group()
    return statistics.median(times[2:])
