"""What features of frozen encoders save: an epoch on the encoders against one on features, and how fast features are made.

    python -m benchmarks.features --train 1200 --val 100 --out benchmarks/results/features.json

On generated postcards with MiniLM and EfficientNet-Lite0, on CPUs. Epochs are without Ray, in processor seconds, which
other work on the machine hardly moves; features are computed on a Ray of this machine's CPUs, in seconds of the clock, beside
the encoders alone in batches, one thread a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cached import frozen_encoders
from benchmarks.loops import one_worker
from datasets_manifest.features.feature_stream import FeatureStream
from datasets_manifest.features.feature_views import encode_views
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.stream.encode import index_table
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.source import BatchSource
from trainers.cluster.local_cluster import start_own_ray
from trainers.compute.device_batches import make_encoding
from trainers.features.compute import ROWS, STRONG_VIEWS, compute_features
from trainers.model.features import FrozenEncoders, encoder_weights
from trainers.preflight.features import read_features, seeded_network
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import Recipe, make_recipe

EPOCHS = 1  # measured, after one that warms up


def benchmark(folder: Path, train: int, val: int, pixels: int) -> dict[str, Any]:
    manifests = [str(path) for path in write_postcards(folder / "postcards", seed=1, train=train, val=val).values()]
    tree: dict[str, Any] = {
        "data": {
            "sources": manifests[:-1],
            "target": manifests[-1],
            "pictures": {"resize": pixels, "crop": pixels, "strong": {"area": [0.4, 1.0]}},
            "texts": {"max_tokens": 64},
        },
        "encoders": frozen_encoders(folder),
        "train": {"epochs": 1 + EPOCHS, "precision": "fp32"},
        "tracking": {"enabled": False},
        "run": {"storage": str(folder / "runs")},
    }
    recipe, out = make_recipe(tree), folder / "features"
    prepared = prepare(recipe)
    views = prepared.corpus.table.num_rows * (1 + STRONG_VIEWS)
    alone = encoders_alone(prepared)
    start_own_ray(num_cpus=os.cpu_count(), log_to_driver=False)
    started = time.perf_counter()
    summary = compute_features(recipe, out)
    computed = time.perf_counter() - started
    on_features = recipe.model_copy(update={"encoders": recipe.encoders.model_copy(update={"features": str(out)})})
    frozen_s = epoch_seconds(prepared, LocalStream(prepared.corpus.table))
    features_s = epoch_seconds(prepare(on_features), stream_of(on_features, prepared))
    return {
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__},
        "records": summary.records,
        "strong_views": STRONG_VIEWS,
        "pixels": pixels,
        "bytes_per_record": round(summary.bytes / summary.records),
        "epoch_frozen_s": round(frozen_s, 2),
        "epoch_features_s": round(features_s, 2),
        "epoch_ratio": round(frozen_s / features_s, 1),
        "encoders_views_per_s": round(alone, 1),
        "features_views_per_s": round(views / computed, 1),
        "features_of_encoders": round(views / computed / alone, 2),
    }


def stream_of(recipe: Recipe, prepared: Prepared) -> BatchSource:
    return FeatureStream(read_features(recipe, prepared.corpus, prepared.card.vocabulary))


def encoders_alone(prepared: Prepared) -> float:
    """Views a second of the encoders over views that were made before, a thread a CPU."""
    card, table = prepared.card, prepared.corpus.table
    encoding, cpus = make_encoding(card.recipe, card.vocabulary), os.cpu_count() or 1
    rows = np.arange(min(2 * cpus * ROWS, table.num_rows))
    blocks = []
    for some in np.array_split(rows, -(-len(rows) // ROWS)):
        index = index_table(np.zeros_like(some), some, np.zeros_like(some))
        blocks.append(encode_views(index, table, encoding, STRONG_VIEWS))
    weights, device = encoder_weights(seeded_network(card)), torch.device("cpu")
    torch.set_num_threads(1)
    encoders = [FrozenEncoders(card, weights, device) for _ in range(cpus)]

    def run(number: int) -> None:
        for block in blocks[number::cpus]:
            encoders[number](block, encoding, STRONG_VIEWS)

    with ThreadPoolExecutor(cpus) as pool:
        list(pool.map(run, range(cpus)))  # warms up
        started = time.perf_counter()
        list(pool.map(run, range(cpus)))
        return len(rows) * (1 + STRONG_VIEWS) / (time.perf_counter() - started)


def epoch_seconds(prepared: Prepared, source: BatchSource) -> float:
    """Processor seconds of an epoch, its scoring included."""
    loop = one_worker(replace(prepared, card=replace(prepared.card, recipe=prepared.recipe)), source)
    loop.run_epoch()
    started = time.process_time()
    for _ in range(EPOCHS):
        loop.run_epoch()
    loop.close()
    return (time.process_time() - started) / EPOCHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--train", type=int, default=60, help="training records of a domain")
    parser.add_argument("--val", type=int, default=20)
    parser.add_argument("--pixels", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = benchmark(Path(folder), given.train, given.val, given.pixels)
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
