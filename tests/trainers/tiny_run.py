"""Small runs for tests: few postcards, small encoders."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.stream.local_stream import LocalStream
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.collective import Collective
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import Recipe
from trainers.recipe.demo import demo_recipe

SMALL = [
    "data.pictures.resize=72",
    "data.pictures.crop=64",
    "encoders.picture.name=tiny:4",
    "encoders.text.name=tiny:32",
    "train.batch_size=6",
    "uacr.warmup=1",
    "uacr.threshold=0",
    "sam.rho=0.05",
]


@cache
def _drawn(train: int, val: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with postcards to copy, removed at the end of the process: drawing them takes longer."""
    folder = tempfile.TemporaryDirectory(prefix="postcards-")
    write_postcards(Path(folder.name) / "postcards", seed=3, train=train, val=val)
    return folder


def small_recipe(folder: Path, overrides: list[str] | None = None, *, train: int = 30, val: int = 12) -> Recipe:
    """A recipe on postcards written below `folder`; runs go there too."""
    cards = folder / "postcards"
    if not cards.exists():
        shutil.copytree(Path(_drawn(train, val).name) / "postcards", cards)
    manifests = write_postcards(cards, seed=3, train=train, val=val)  # checks what is there
    return demo_recipe(manifests, [*SMALL, f"run.storage={folder / 'runs'}", *(overrides or [])])


def prepared_run(folder: Path, overrides: list[str] | None = None) -> Prepared:
    return prepare(small_recipe(folder, overrides))


def two_epochs(run: Prepared, folder: Path) -> Loop:
    """The loop after two epochs, with a checkpoint of each in `folder`."""
    loop = make_loop(run)
    for epoch in (1, 2):
        loop.run_epoch()
        loop.save(folder / f"checkpoint_{epoch}", {})
    return loop


def make_loop(run: Prepared, observer: Observer | None = None) -> Loop:
    """The training loop without Ray."""
    return Loop(
        run.card,
        run.corpus,
        labels=run.corpus.labels,
        source=LocalStream(run.corpus.table),
        collective=Collective(),
        device=torch.device("cpu"),
        observer=observer or Observer(),
    )
