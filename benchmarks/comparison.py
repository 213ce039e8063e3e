"""Baselines, ablations and options on two data sets: frozen encoders' features, the ordinary network, step and loop.

    python -m benchmarks.comparison --cache FOLDER [--seeds 5] [--data postcards icons] [--variants NAME …] [--out FILE]

Each seed has its own weights and order, and its own postcards; the icons are split once. Checkpoints are chosen by the
recipe's validator without target labels. Runs that --out holds already are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants import COMMON, EXPERIMENTS_OF, PRESET_OF, VARIANTS

RESULTS = Path(__file__).parent / "results" / "comparison.json"
DATA = ("postcards", "icons")
PIXELS = 96
TRAIN, VAL = 400, 200  # of a domain of the postcards


@functools.lru_cache(maxsize=1)
def features_of(data: str, seed: int, cache: Path) -> Any:
    from benchmarks.cached import cache_features
    from benchmarks.icons import write_icons
    from datasets_manifest.postcards.generate import write_postcards

    name = f"{data}-{seed if data == 'postcards' else 0}"
    if data == "icons":
        manifests = write_icons(cache / name, cache, seed=0)
    else:
        manifests = list(write_postcards(cache / name, seed=seed, train=TRAIN, val=VAL).values())
    return cache_features(manifests, cache / f"{name}-features", PIXELS)


def run_one(task: tuple[str, int, str, Path]) -> dict[str, Any]:
    """One variant of one data set and seed."""
    data, seed, name, cache = task
    import torch

    from experiments.catalog import applied

    torch.set_num_threads(1)
    features = features_of(data, seed, cache)
    started = time.process_time()
    with applied(*EXPERIMENTS_OF.get(name, [])):
        metrics = UNTRAINED[name](features) if name in UNTRAINED else run_variant(features, name, seed)
    return {"data": data, "seed": seed, "variant": name, **metrics, "cpu_s": round(time.process_time() - started, 2)}


def recipe_of(features: Any, name: str, seed: int) -> Any:
    from trainers.recipe import apply_override, make_recipe

    preset = PRESET_OF.get(name, "published")
    data = features.card.recipe.data.model_dump(mode="json")
    if name in ("first source", "second source"):
        data["sources"] = data["sources"][:1] if name == "first source" else data["sources"][1:]
    tree: dict[str, Any] = {"preset": preset, "data": data}
    for text in [*COMMON, *VARIANTS[name], f"train.seed={seed}"]:
        apply_override(tree, text)
    return make_recipe(tree)


def run_variant(features: Any, name: str, seed: int) -> dict[str, Any]:
    """One run; accuracy, macro-F1 and AUC of the chosen epoch, and accuracies of the last and the best epoch."""
    from benchmarks.cached import cached_loop
    from trainers.validators import choose_candidate

    recipe = recipe_of(features, name, seed)
    loop = cached_loop(features, recipe)
    evidence, epochs, probs = [], [], []
    while not loop.is_over:
        metrics, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        epochs.append(metrics)
        probs.append(target_probs(loop))
    chosen = choose_candidate(recipe.selection.validator, evidence, recipe.selection.gate)
    accuracy = [metrics["target/val/accuracy"] for metrics in epochs]
    return {
        "chosen": accuracy[chosen],
        "last": accuracy[-1],
        "oracle": max(accuracy),
        "macro_f1": epochs[chosen]["target/val/macro_f1"],
        "auc": area_under_curve(loop.batches.labels[target_rows(loop.corpus)], probs[chosen]),
        "source": epochs[chosen]["source/val/accuracy"],
        "score": epochs[chosen]["selection/score"],
        "precision": [round(metrics.get("uacr/precision", float("nan")), 4) for metrics in epochs],
        "epochs": accuracy,
    }


def target_rows(corpus: Any) -> np.ndarray:
    """The target's validation rows."""
    return corpus.val[-1].rows


def target_probs(loop: Any) -> np.ndarray:
    """Of the target's validation rows, [N, C]."""
    import torch

    from trainers.compute.device_batches import to_batch

    rows = target_rows(loop.corpus)
    host = next(loop.batches.source.evaluate([rows], None))
    batch = to_batch(host, np.full((1, len(rows)), -1), device=loop.device, dtype=loop.dtype)
    loop.network.eval()
    with torch.inference_mode():
        outputs = loop.network(batch)
    loop.network.train()
    return outputs.fused_logits_DBC[0].softmax(-1).double().numpy()


def area_under_curve(labels_N: np.ndarray, probs_NC: np.ndarray) -> float:
    """Mean over the classes of the area under the curve of one class against the rest."""
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(labels_N == c, probs_NC[:, c]) for c in np.unique(labels_N)]
    return float(np.mean(areas))


def majority(features: Any) -> dict[str, Any]:
    """The sources' most frequent class for every row."""
    from trainers.loop.evaluation import classification_metrics

    corpus = features.corpus
    taught = np.concatenate([corpus.labels[part.rows] for part in corpus.train[:-1]])
    labels = corpus.labels[target_rows(corpus)]
    found = classification_metrics(labels, np.full(len(labels), np.bincount(taught).argmax()))
    same = dict.fromkeys(("chosen", "last", "oracle"), found["accuracy"])
    return {**same, "macro_f1": found["macro_f1"], "auc": 0.5}


def floor(features: Any, self_training: bool) -> dict[str, Any]:
    """Linear probes on the standardised features of all domains' training rows."""
    import torch

    from trainers.loop.evaluation import classification_metrics
    from trainers.m2can.floor import fit_floor

    corpus = features.corpus
    views = {"text": features.text_VNK[0], "picture": features.picture_VNK[0]}

    def rows_of(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: x[torch.from_numpy(rows)] for name, x in views.items()}

    sources = [(rows_of(part.rows), torch.from_numpy(corpus.labels[part.rows]).long()) for part in corpus.train[:-1]]
    target = rows_of(corpus.train[-1].rows)
    fitted = fit_floor(sources, target, len(corpus.classes), self_training=self_training)
    labels = corpus.labels[target_rows(corpus)]
    probs = fitted.logits(rows_of(target_rows(corpus))).softmax(1).numpy()
    found = classification_metrics(labels, probs.argmax(1))
    same = dict.fromkeys(("chosen", "last", "oracle"), found["accuracy"])
    return {**same, "macro_f1": found["macro_f1"], "auc": area_under_curve(labels, probs)}


UNTRAINED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "majority": majority,
    "floor": functools.partial(floor, self_training=False),
    "floor + self-training": functools.partial(floor, self_training=True),
}


def summary(runs: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Mean and standard deviation of every metric by (data, variant)."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["data"], run["variant"]].append(run)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, group in groups.items():
        found[key] = {"seeds": len(group)}
        for metric in ("chosen", "oracle", "last", "macro_f1", "auc"):
            values = [run[metric] for run in group]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            found[key][metric] = (float(np.mean(values)), spread)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="packages, data and features; outside the project")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--variants", nargs="+", choices=[*UNTRAINED, *VARIANTS], default=[*UNTRAINED, *VARIANTS])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.is_file() else []
    done = {(run["data"], run["seed"], run["variant"]) for run in runs}
    places = product(range(arguments.seeds), arguments.data, arguments.variants)
    tasks = [(data, seed, name, arguments.cache) for seed, data, name in places if (data, seed, name) not in done]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for found in pool.imap_unordered(run_one, tasks):
            runs.append(found)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                lines = ",\n".join(json.dumps(run) for run in runs)
                arguments.out.write_text(f"[\n{lines}\n]\n")
            print(found["data"], found["seed"], found["variant"], f"{100 * found['chosen']:.1f}", flush=True)
    for (data, variant), row in sorted(summary(runs).items(), key=lambda item: (item[0][0], -item[1]["chosen"][0])):
        cells = " ".join(
            f"{metric} {100 * row[metric][0]:5.1f} ± {100 * row[metric][1]:4.1f}" for metric in row if metric != "seeds"
        )
        print(f"{data:10} {variant:40} {cells} ({row['seeds']})")


if __name__ == "__main__":
    main()
