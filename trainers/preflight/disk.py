"""How much disk a run's checkpoints take, and how many of them stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from ray.train import CheckpointConfig

from datasets_manifest.disk import megabytes, nearest_folder
from datasets_manifest.errors import InputError
from datasets_manifest.records.corpus import Corpus
from trainers.compute.precision import dtype_of
from trainers.encoders.weight_files import FROZEN
from trainers.loop.reference_records import reference_part
from trainers.m2can.network import FUSED
from trainers.model.reference import FACTS, MOST_RECORDS
from trainers.recipe import Recipe
from trainers.recipe.base import decided
from trainers.validators.inputs import MOST_ROWS

# Beside what stays by rank: the newest, which Ray keeps whatever its rank, and the one that is being written.
BESIDE_THE_BEST = 2
_HEADERS = 8 * 2**10  # names and shapes of the tensors that evaluation_bytes counts, files.json


def evaluation_bytes(recipe: Recipe, corpus: Corpus) -> int:
    """At most, of what a checkpoint holds by row: scores of an epoch, pseudo labels, rows with a bad picture, the reference."""
    width, classes = dtype_of(recipe).itemsize, len(corpus.classes)
    target, trained = len(corpus.train[-1]), sum(len(part) for part in corpus.train)
    validated = sum(len(part) for part in corpus.val if part is not None)
    scores = (target + validated) * (3 * width + 2 * 8)  # probability, score, variance; label and true label
    selection = 3 * target * 8 + (trained + validated) * 8  # rows with a pseudo label twice, their labels; bad rows
    looked_at = min(target, MOST_ROWS), min(sum(len(part) for part in corpus.val[:-1] if part is not None), MOST_ROWS)
    inputs = sum(looked_at) * (classes + FUSED) * 4 + looked_at[0] * (classes * 4 + 16) + looked_at[1] * 8
    reference = min(len(reference_part(corpus)), MOST_RECORDS) * (classes + FUSED + len(FACTS)) * 4
    reference += min(looked_at[1], MOST_RECORDS) * (classes * 4 + 4)
    return scores + selection + inputs + reference + _HEADERS


def most_at_once(recipe: Recipe, size: int, frozen: int = 0) -> int:
    """The most checkpoints that lie in the run's folder at a time; see `retention`."""
    return (_to_keep(recipe, size, frozen) or decided(recipe.train.epochs)) + BESIDE_THE_BEST


def retention(recipe: Recipe, size: int, frozen: int = 0) -> CheckpointConfig:
    """Which checkpoints stay: of epochs' ends by score, then those from within an epoch; always the newest.

    Args:
        size: of one checkpoint, bytes.
        frozen: of the weights that are written once beside them, bytes.
    """
    keep = _to_keep(recipe, size, frozen)
    return CheckpointConfig() if keep is None else CheckpointConfig(keep, checkpoint_score_attribute="retention")


def _to_keep(recipe: Recipe, size: int, frozen: int) -> int | None:
    wanted = recipe.checkpoint
    if wanted.keep is None and wanted.every_steps is None and wanted.max_disk is None:
        return None
    # At most one an epoch, and one from within the epoch that is under way.
    most = decided(recipe.train.epochs) + (wanted.every_steps is not None)
    keep = min(wanted.keep or most, most)
    return keep if wanted.max_disk is None else min(keep, (wanted.max_disk - frozen) // size - BESIDE_THE_BEST)


def require_disk(recipe: Recipe, size: int, folder: Path, frozen: int = 0) -> list[str]:
    """Look whether the checkpoints fit; what a run without `checkpoint.max_disk` should know is returned as notes.

    Args:
        size: of one checkpoint, bytes.
        folder: of the run; what lies there already counts as taken.
        frozen: of the weights that are written once beside them, bytes.

    Raises:
        InputError: max_disk has no room for the best, the newest and one being written, or the disk lacks what it allows.
    """
    limit, least = recipe.checkpoint.max_disk, (1 + BESIDE_THE_BEST) * size + frozen
    once = f", the frozen weights {megabytes(frozen)} once" if frozen else ""
    if limit is not None and limit < least:
        raise InputError(
            f"a checkpoint takes {megabytes(size)}{once}; the best one, the newest and the one being written do not fit",
            field="checkpoint.max_disk",
            value=limit,
            wanted=f"at least {least} ({megabytes(least)})",
        )
    needed = max(0, most_at_once(recipe, size, frozen) * size + frozen - _taken(folder))
    there = nearest_folder(folder)
    free = shutil.disk_usage(there).free
    if needed <= free:
        return []
    problem = f"the run's checkpoints will take {megabytes(needed)} more and the disk has {megabytes(free)} free"
    if limit is None:
        return [f"{problem}; set checkpoint.keep or checkpoint.max_disk"]
    wanted = f"at most {free + _taken(folder)}, or more room in {there}"
    raise InputError(problem, field="checkpoint.max_disk", value=limit, wanted=wanted)


def _taken(folder: Path) -> int:
    files = [*folder.glob("checkpoint_*/**/*"), folder / FROZEN]
    return sum(file.stat().st_size for file in files if file.is_file())
