"""Train a recipe with experiments, in this process and without MLflow; prints each epoch's metrics.

python -m experiments recipe.yaml neighbours [soft-labels …] [--set a.b=c …]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from datasets_manifest.stream.local_stream import LocalStream
from experiments.catalog import NAMES, applied
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.collective import Collective
from trainers.preflight.preparation import prepare
from trainers.recipe import load_recipe

SHOWN = ("loss/total", "source/val/accuracy", "target/val/accuracy", "selection/score", "uacr/kept", "uacr/precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="experiment", help=", ".join(NAMES))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    arguments = parser.parse_args()
    run = prepare(load_recipe(arguments.recipe, arguments.overrides))
    with applied(*arguments.names):
        loop = Loop(
            run.card,
            run.corpus,
            labels=run.corpus.labels,
            source=LocalStream(run.corpus.table),
            collective=Collective(),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            observer=Observer(),
        )
        while not loop.is_over:
            metrics, _ = loop.run_epoch()
            shown = " ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
            print(f"epoch {loop.epoch}: {shown}", flush=True)


if __name__ == "__main__":
    main()
