"""Data, epochs and pseudo-label passes against the baseline."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.baseline import PaddedSamples, baseline_network, load, loaded_batch
from benchmarks.loops import one_worker
from benchmarks.sides import Runs, SideProcess, compare, interleaved
from benchmarks.step_parts import make_step
from benchmarks.streaming import encoding_of, table_of, write_pictures
from datasets_manifest.records.sharded_table import in_memory
from datasets_manifest.stream.encode import HostBatch, collate, encode_rows, index_table
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from datasets_manifest.stream.images import IMAGENET_STD, PictureViews
from datasets_manifest.stream.ray_stream import CpuBudget, Stream, quiet
from trainers.cluster.local_cluster import start_ray
from trainers.compute.device_batches import make_encoding, normalise
from trainers.loop.loop import Loop
from trainers.m2can.pseudo_labels import score_samples
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import Recipe, make_recipe

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
            return collate(encode_rows(index, table, encoding), encoding)

        def theirs() -> list[Any]:
            return list(load(samples, [np.arange(pictures)], workers=0))

        weak = normalise(torch.from_numpy(ours().pictures[:pictures]), torch.float32, PictureViews())
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


VALIDATION = 8  # every so many rows of a domain are its validation rows


def write_reviews(
    folder: Path, rows: int, *, size: tuple[int, int] = JPEG, words: int = 500, spread: float = 0.0
) -> list[Path]:
    """Three domains of JPEGs and texts.

    Args:
        rows: of a domain.
        size: width and height of the pictures.
        words: of the vocabulary.
        spread: σ of the texts' log-normal lengths, whose median is 25 words.

    Returns:
        the manifests, the target's last.
    """
    random, found = np.random.default_rng(0), []
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        paths = write_pictures(folder / name, rows, size)
        lengths = (25 * np.exp(spread * random.standard_normal(rows))).round().astype(int).clip(1, 190)
        lines = [
            {"id": f"{name}{n}", "label": n % 3, "image": [Path(path).name],
             "text": [" ".join(f"word{k}" for k in random.integers(0, words, length))]}
            for n, (path, length) in enumerate(zip(paths, lengths, strict=True))
        ]  # fmt: skip
        (folder / name / "train.json").write_text(json.dumps(lines))
        (folder / name / "val.json").write_text(json.dumps(lines[::VALIDATION]))
        splits = {split: {"records": f"{split}.json"} for split in ("train", "val")}
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
                "text": {"name": "tiny", "weights": "random"},
                "picture": {"name": "tiny:8", "head": "none", "weights": "random"},
            },
            "uacr": {"start": 1.0},
            "train": {"epochs": 4, "batch_size": 8},
            "run": {"storage": str(storage)},
        }
    )


@contextlib.contextmanager
def our_run(rows: int, cpus: int, *, scoring: bool) -> Iterator[Runs]:
    """Epochs after the first, which is one without the target; or pseudo-label passes, their weak views `kept` from the
    pass before or `read`. Each returns how many rows it scored."""
    quiet()
    torch.set_num_threads(1)
    with reviews(rows) as prepared:
        start_ray("local")
        reading = Stream(ray.put(prepared.corpus.table), CpuBudget(cpus=cpus / 2))
        keeping = EvaluationCache(reading)
        loop = one_worker(prepared, keeping)

        def score(source: Any) -> int:
            loop.batches.source = source
            loop.select_pseudo_labels(loop.score())
            return scored_rows(loop)

        def epoch() -> int:
            loop.run_epoch()
            return scored_rows(loop)

        if scoring:
            yield {"kept": lambda: score(keeping), "read": lambda: score(reading)}
        else:
            epoch()
            yield {"ours": epoch}
        ray.shutdown()


@contextlib.contextmanager
def their_run(rows: int, cpus: int, *, scoring: bool) -> Iterator[Runs]:
    """The baseline's, on the same rows."""
    torch.set_num_threads(1)
    with reviews(rows) as prepared:
        loop = one_worker(prepared)
        network = baseline_network(loop.network)
        step = make_step(network, loop.recipe, CPU, ordinary=True)

        def score() -> int:
            baseline_scores(loop, network, cpus)
            return scored_rows(loop)

        def epoch() -> int:
            baseline_steps(loop, network, step, cpus)
            return score()

        if not scoring:
            loop.run_epoch()  # one without the target
        yield {"theirs": score if scoring else epoch}


@contextlib.contextmanager
def reviews(rows: int) -> Iterator[Prepared]:
    with tempfile.TemporaryDirectory() as folder:
        yield prepare(small_recipe(write_reviews(Path(folder) / "data", rows), Path(folder)))


def scored_rows(loop: Loop) -> int:
    return sum(len(part) for part in loop.batches.eval_plan()[0])


def compare_runs(rows: int, repeats: int, *, scoring: bool) -> tuple[dict[str, float], dict[str, int]]:
    cpus = os.cpu_count() or 1
    ours, theirs = (SideProcess(partial(run, scoring=scoring), rows, cpus) for run in (our_run, their_run))
    return compare(ours, theirs, repeats)


def measure_epoch(rows: int, repeats: int) -> dict[str, Any]:
    """Data, steps of all three domains and the pseudo-label pass, with small encoders, on this machine's cores.

    Both sides score the same rows, validation too. The weak views that ours keeps were made in the epoch before.
    """
    times, _ = compare_runs(rows, repeats, scoring=False)
    return {**times, "ratio": times["theirs"] / times["ours"], "unit": "s", "rows": rows}


def measure_scoring_pass(rows: int, repeats: int) -> dict[str, Any]:
    """Rows from files to pseudo labels, on this machine's cores: samples a second.

    `scoring`: in every epoch but the first, when weak views are kept. `scoring_first`: when all are read and encoded.
    """
    times, scored = compare_runs(rows, repeats, scoring=True)
    rate = {name: scored[name] / seconds for name, seconds in times.items()}

    def row(name: str) -> dict[str, Any]:
        ratio = rate[name] / rate["theirs"]
        return {
            "ours": rate[name],
            "theirs": rate["theirs"],
            "ratio": ratio,
            "unit": "samples/s",
            "rows": scored[name],
        }

    return {"scoring": row("kept"), "scoring_first": row("read")}


def baseline_steps(loop: Loop, network: Any, step: Any, workers: int) -> None:
    """The steps of the loop's plan."""
    table, plan = in_memory(loop.corpus.table), loop.plan()
    slices = list(plan.worker_steps(0, 1))
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    network.text_encoder.calls = 2 * plan.num_domains
    strong = make_encoding(loop.recipe, loop.card.vocabulary, epoch=loop.epoch, strong=True)
    batches = [s.rows_DB.ravel() for s in slices]
    for slice_, loaded in zip(slices, load(PaddedSamples(texts, images, strong), batches, workers), strict=True):
        step(loaded_batch(loaded, slice_.labels_DB))


def baseline_scores(loop: Loop, network: Any, workers: int) -> None:
    """The target's rows and those of validation scored."""
    table = in_memory(loop.corpus.table)
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    rows, size = loop.batches.eval_plan()[1].rows, loop.recipe.train.batch_size
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    network.eval()
    network.text_encoder.calls = 1
    weak = make_encoding(loop.recipe, loop.card.vocabulary)
    with torch.inference_mode():
        for part, loaded in zip(parts, load(PaddedSamples(texts, images, weak), parts, workers), strict=True):
            outputs = network(loaded_batch(loaded, np.full((1, len(part)), -1)))
            score_samples(outputs.logits_HQDBC[:, 0, 0])
    network.train()
