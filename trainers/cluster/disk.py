"""How much disk a run's checkpoints take, and how many of them stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from ray.train import CheckpointConfig

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.corpus import Corpus
from trainers.m2can.network import FUSED, M2CAN
from trainers.model.build import build_discriminators
from trainers.model.precision import dtype_of
from trainers.recipe.recipe import Recipe
from trainers.validators.inputs import MOST_ROWS

# Beside what stays by rank: the newest, which Ray keeps whatever its rank, and the one that is being written.
BESIDE_THE_BEST = 2
_HEADERS = 64 * 2**10  # names and shapes of tensors, model.json, training.json, files.json
_STATES = {"adam": 2, "adamw": 2, "adadelta": 2, "sgd": 1}  # tensors of a weight's size that an optimizer carries


def checkpoint_bytes(network: M2CAN, recipe: Recipe, corpus: Corpus, tokenizer: str) -> int:
    """An upper bound on a checkpoint's size, within a few percent of the real one."""
    discriminators = build_discriminators(corpus.num_sources, len(corpus.classes))
    width = dtype_of(recipe).itemsize

    def size(tensors: list[torch.Tensor]) -> int:
        return sum(x.numel() * (width if x.is_floating_point() else x.itemsize) for x in tensors)

    modules = (network, discriminators)
    saved = sum(size(list(module.state_dict().values())) for module in modules)
    trained = sum(size([p for p in module.parameters() if p.requires_grad]) for module in modules)
    saved += trained * _STATES[recipe.optimizer.type]
    return saved + evaluation_bytes(corpus, width) + len(tokenizer.encode()) + _HEADERS


def evaluation_bytes(corpus: Corpus, width: int) -> int:
    """Of what an epoch says about the rows it scored, and of the pseudo labels; `width` bytes a number."""
    target, validated = len(corpus.train[-1]), sum(len(part) for part in corpus.val if part is not None)
    scores = (target + validated) * (3 * width + 2 * 8)  # probability, score, variance; label and true label
    selection = 3 * target * 8  # rows with a pseudo label twice, their labels once
    looked_at = min(target, MOST_ROWS), min(sum(len(part) for part in corpus.val[:-1] if part is not None), MOST_ROWS)
    evidence = sum(looked_at) * (len(corpus.classes) + FUSED) * 4 + looked_at[0] * (len(corpus.classes) * 4 + 16)
    return scores + selection + evidence + looked_at[1] * 8


def most_at_once(recipe: Recipe, size: int) -> int:
    """The most checkpoints that lie in the run's folder at a time."""
    return (_to_keep(recipe, size) or recipe.train.epochs) + BESIDE_THE_BEST


def retention(recipe: Recipe, size: int) -> CheckpointConfig:
    """Which checkpoints stay: of epochs' ends by score, then those from within an epoch; always the newest.

    Args:
        size: of one checkpoint, bytes.
    """
    keep = _to_keep(recipe, size)
    return CheckpointConfig() if keep is None else CheckpointConfig(keep, checkpoint_score_attribute="retention")


def _to_keep(recipe: Recipe, size: int) -> int | None:
    wanted = recipe.checkpoint
    if wanted.keep is None and wanted.every_steps is None and wanted.max_disk is None:
        return None
    keep = wanted.keep or recipe.train.epochs + 1
    return keep if wanted.max_disk is None else min(keep, wanted.max_disk // size - BESIDE_THE_BEST)


def require_disk(recipe: Recipe, size: int, folder: Path) -> list[str]:
    """Look whether the checkpoints fit; what a run without `checkpoint.max_disk` should know is returned as notes.

    Args:
        size: of one checkpoint, bytes.
        folder: of the run; what lies there already counts as taken.

    Raises:
        InputError: max_disk has no room for the best, the newest and one being written, or the disk lacks what it allows.
    """
    limit, least = recipe.checkpoint.max_disk, (1 + BESIDE_THE_BEST) * size
    if limit is not None and limit < least:
        raise InputError(
            f"a checkpoint takes {megabytes(size)}; the best one, the newest and the one being written do not fit",
            field="checkpoint.max_disk",
            value=limit,
            wanted=f"at least {least} ({megabytes(least)})",
        )
    needed = max(0, most_at_once(recipe, size) * size - _taken(folder))
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed <= free:
        return []
    problem = f"the run's checkpoints will take {megabytes(needed)} more and the disk has {megabytes(free)} free"
    if limit is None:
        return [f"{problem}; set checkpoint.keep or checkpoint.max_disk"]
    wanted = f"at most {free + _taken(folder)}, or more room in {there}"
    raise InputError(problem, field="checkpoint.max_disk", value=limit, wanted=wanted)


def _taken(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("checkpoint_*/**/*") if file.is_file())


def megabytes(size: float) -> str:
    """`1,234 MB`, with a decimal where it matters."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
