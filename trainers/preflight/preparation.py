"""Looks at a recipe and all its inputs before anything of a cluster is taken."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets_manifest.errors import InputError
from datasets_manifest.files import write_atomically
from datasets_manifest.records.corpus import Corpus, load_corpus, require_pictures
from trainers.model.build import build_network
from trainers.model.checkpoint import ModelCard, read_json
from trainers.model.encoders import text_config
from trainers.model.precision import expected_device, require_device
from trainers.model.vocabulary import make_vocabulary
from trainers.preflight.disk import evaluation_bytes, require_disk
from trainers.preflight.network_checks import require_parts, require_statistics
from trainers.preflight.sizes import state_sizes
from trainers.recipe import Recipe, make_recipe
from trainers.tracking.address import run_storage
from trainers.validators import NEED_SOURCE_VALIDATION


@dataclass(frozen=True)
class Prepared:
    """A recipe whose inputs were all looked at: what is wrong is found here, before anything of a cluster is taken."""

    recipe: Recipe
    name: str
    folder: Path
    corpus: Corpus
    card: ModelCard
    notes: list[str]
    checkpoint_bytes: int  # of one checkpoint; a little more than its real size
    state_bytes: int  # on each worker, whatever the batch: weights, gradients, optimizer state


def prepare(recipe: Recipe) -> Prepared:
    """Read the manifests, look for the pictures' files, try the encoders.

    Raises:
        InputError: what is wrong with the recipe or the data.
    """
    data, storage = recipe.data, run_storage(recipe)
    corpus = load_corpus(data.sources, data.target, data.train_split, data.val_split)
    _check_against_data(recipe, corpus)
    notes = corpus.notes + require_pictures(corpus, data.max_bad_fraction)
    vocabulary = make_vocabulary(recipe, corpus)
    card = ModelCard(
        recipe=recipe,
        classes=corpus.classes,
        sources=[part.domain for part in corpus.train[:-1]],
        target=corpus.target,
        text_config=text_config(recipe.encoders.text, vocabulary.size, vocabulary.pad_id, data.texts.max_tokens),
        vocabulary=vocabulary,
    )
    device = expected_device(recipe)
    if device is not None:
        require_device(recipe, device)
    with one_thread():
        network = build_network(recipe, card.text_config, len(corpus.classes), load_weights=True)
        require_statistics(network, data.pictures.crop)
        require_parts(network, recipe.train.accumulate)
    name = recipe.run.name or f"{corpus.target}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    sizes = state_sizes(card, network)
    size = sizes.files + evaluation_bytes(recipe, corpus)
    notes += require_disk(recipe, size, storage / name)
    return Prepared(recipe, name, storage / name, corpus, card, notes, size, sizes.memory)


def _check_against_data(recipe: Recipe, corpus: Corpus) -> None:
    """Raises InputError: a key that does not fit the number of classes, rows or splits."""
    data = recipe.data
    if isinstance(recipe.uacr.prior, list) and len(recipe.uacr.prior) != len(corpus.classes):
        raise InputError(
            "needs a share for every class",
            field="uacr.prior",
            value=recipe.uacr.prior,
            wanted=f"{len(corpus.classes)} numbers, for {', '.join(corpus.classes)}",
        )
    samples = data.samples_per_epoch or max(len(part) for part in corpus.train[:-1])
    steps = -(-samples // recipe.train.batch_size)
    if samples // steps < recipe.cluster.most_workers:
        raise InputError(
            f"a step has {samples // steps} rows of each domain: some workers would have none",
            field="cluster.workers",
            value=recipe.cluster.workers,
            wanted=f"at most {samples // steps}",
        )
    validator = recipe.selection.validator
    if validator in NEED_SOURCE_VALIDATION and not any(corpus.val[:-1]):
        raise InputError(
            "needs labelled validation rows of a source, and no source has that split",
            field="selection.validator",
            value=validator,
            wanted=f"`infomax`, `ensv`, …, or the split `{data.val_split}` in a source's manifest",
        )


# What may differ when a run goes on under its name: where and on what it runs, not what is computed.
_FREE = ("cluster.", "checkpoint.", "tracking.", "run.", "selection.")


def claim(prepared: Prepared) -> None:
    """Make the run's folder with its recipe, unless it is there. Raises InputError: the name is another recipe's."""
    file = prepared.folder / "recipe.json"
    require_own_name(prepared)
    if not file.is_file():
        recipe = prepared.recipe.model_dump(mode="json")
        write_atomically(file, json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")


def require_own_name(prepared: Prepared) -> None:
    """A run's folder that is there belongs to this run only if the recipe is the same.

    Raises:
        InputError: the name is another recipe's.
    """
    file = prepared.folder / "recipe.json"
    if file.is_file():
        before, now = make_recipe(read_json(file), str(file)).flat(), prepared.recipe.flat()
        changed = [key for key in now if now[key] != before.get(key) and not key.startswith(_FREE)]
        if changed:
            raise InputError(
                f"is the name of a run with another recipe (it differs in {', '.join(changed[:3])})",
                field="run.name",
                value=prepared.name,
                wanted=f"another name, or {changed[0]}={before.get(changed[0])}",
            )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the other cores start Ray, or belong to workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
