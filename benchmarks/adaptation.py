"""Does it adapt? Target accuracy of source-only training and of M2CAN on the generated data set, over several seeds.

    python -m benchmarks.adaptation [--seeds 5] [--set a.b=c …] [--out benchmarks/results/adaptation.json]

Every seed makes its own data set and its own weights. Both sides have the same encoders, steps and views; the checkpoint
is chosen without target labels. The loop is the one that Ray Train's workers run, here without Ray and on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SOURCE_ONLY = [
    "uacr.enabled=false",
    "objective.cmcfa=0",
    "objective.cdcfa=0",
    "objective.cdafa=0",
    "objective.mcc=0",
]


def run_one(task: tuple[int, str, list[str], str]) -> dict[str, Any]:
    """One training run; the metrics of the chosen, the last and the oracle epoch."""
    seed, arm, overrides, folder = task
    import torch

    from datasets_manifest.postcards.generate import write_postcards
    from datasets_manifest.stream.local_stream import LocalStream
    from trainers.journal.journal import EpochRecord
    from trainers.loop.loop import Loop
    from trainers.loop.observer import Observer
    from trainers.m2can.collective import Collective
    from trainers.preflight.preparation import prepare
    from trainers.recipe.demo import demo_recipe
    from trainers.validators import choose_candidate, verdicts

    torch.set_num_threads(1)
    started = time.perf_counter()
    manifests = write_postcards(Path(folder) / f"postcards-{seed}", seed=seed)
    extra = SOURCE_ONLY if arm == "source_only" else []
    prepared = prepare(demo_recipe(manifests, [*overrides, *extra, f"train.seed={seed}"]))
    corpus = prepared.corpus
    loop = Loop(
        prepared.card,
        corpus,
        labels=corpus.labels,
        source=LocalStream(corpus.table),
        collective=Collective(),
        device=torch.device("cpu"),
        observer=Observer(),
    )
    records, evidence = [], []
    while not loop.is_over:
        metrics, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        records.append(EpochRecord(loop.epoch, loop.step.number, time.time(), metrics))
    accuracy = [record.metrics["target/val/accuracy"] for record in records]
    selection = loop.recipe.selection
    chosen = choose_candidate(selection.validator, evidence, selection.gate)
    return {
        "seed": seed,
        "arm": arm,
        "chosen": accuracy[chosen],
        "last": accuracy[-1],
        "oracle": max(accuracy),
        "source": records[chosen].metrics["source/val/accuracy"],
        "epochs": accuracy,
        "precision": [record.metrics.get("uacr/precision") for record in records],
        "chosen_epoch": chosen + 1,
        "verdicts": {row["validator"]: row["accuracy"] for row in verdicts(evidence, accuracy, selection.gate)},
        "ungated": {row["validator"]: row["accuracy"] for row in verdicts(evidence, accuracy, 1.0)},
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="a recipe key, for both sides")
    parser.add_argument("--arms", nargs="+", default=["source_only", "m2can"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        tasks = [(seed, arm, arguments.overrides, folder) for seed in seeds for arm in arguments.arms]
        with multiprocessing.get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
            results = []
            for result in pool.imap(run_one, tasks, chunksize=1):
                results.append(result)
                curve = " ".join(f"{100 * a:.0f}" for a in result["epochs"])
                print(
                    f"seed {result['seed']} {result['arm']:12} chosen {100 * result['chosen']:5.1f} "
                    f"last {100 * result['last']:5.1f} oracle {100 * result['oracle']:5.1f} "
                    f"source {100 * result['source']:5.1f} | {curve} | {result['seconds']:.0f} s",
                    flush=True,
                )
    print(table(results, arguments.arms))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"overrides": arguments.overrides, "runs": results}, indent=1) + "\n")


def table(results: list[dict[str, Any]], arms: list[str]) -> str:
    """Markdown: mean ± standard deviation over the seeds, in percent."""
    lines = ["| training | chosen without labels | last epoch | oracle |", "|---|---|---|---|"]
    for arm in arms:
        runs = [result for result in results if result["arm"] == arm]
        cells = []
        for key in ("chosen", "last", "oracle"):
            values = [100 * run[key] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
