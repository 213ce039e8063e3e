"""Looks at a recipe and all its inputs before anything of a cluster is taken."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datasets_manifest.files import json_text, write_atomically
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.stream.encode import Vocabulary
from trainers.compute.compiled import require_blocks
from trainers.compute.precision import expected_device, require_device
from trainers.compute.vocabulary import count_cut_texts, make_vocabulary
from trainers.encoders.encoders import picture_config, require_kinds, text_config
from trainers.encoders.hub_models import context_length
from trainers.encoders.picture_card import PictureCard, described, picture_card, with_views
from trainers.m2can.network import M2CAN
from trainers.model.card import ModelCard, load_card, shareable
from trainers.model.trained_network import plain_weights
from trainers.model.warm_start import require_same_encoders, taken_from
from trainers.preflight.disk import evaluation_bytes, require_disk
from trainers.preflight.features import begin_encoders, require_features, seeded_network
from trainers.preflight.inputs import DATA, Inputs, read_inputs, require_own_name
from trainers.preflight.network_checks import require_parts, require_size, require_statistics, require_texts
from trainers.preflight.sizes import state_sizes
from trainers.preflight.start import STARTED, Start, model_of_started
from trainers.recipe import Recipe
from trainers.recipe.base import decided
from trainers.recipe.data_sections import OF_THE_CARD
from trainers.store.run_store import RunStore, store_told
from trainers.tracking.address import run_storage, run_store
from trainers.tracking.provenance import data_hashes

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class Prepared:
    """A recipe whose inputs were all looked at: what is wrong is found here, before anything of a cluster is taken.

    recipe: with all values that the given one left to trainers.recipe.training_rule and to the encoder's card.
    pictures: how the picture encoder takes them, and who says so. start: what it starts from; None: from its encoders' own
    weights, or from its checkpoints. taken: the network's tensors → those of the model whose weights they take. table: the
    corpus's, in Ray's object store (`trainers.cluster.driver.in_object_store`); None: it is not there.
    """

    recipe: Recipe
    name: str
    folder: Path
    corpus: Corpus
    card: ModelCard
    notes: list[str]
    checkpoint_bytes: int  # of one checkpoint; a little more than its real size
    state_bytes: int  # on each worker, whatever the batch: weights, gradients, optimizer state
    frozen_bytes: int = 0  # of the weights that are written once, beside the checkpoints
    pictures: str = ""
    start: Start | None = None
    taken: dict[str, str] = field(default_factory=dict)
    table: ray.ObjectRef | None = None

    @property
    def store(self) -> RunStore | None:
        """Where the run lies in an object store, whose working copy `folder` is; None: it lies in the folder."""
        runs = run_store(self.recipe)
        return runs / self.name if runs is not None else None


def prepare(recipe: Recipe, inputs: Inputs | None = None) -> Prepared:
    """Read the manifests, look for the pictures' files, try the encoders.

    Args:
        inputs: of this recipe, if they were read already.

    Raises:
        InputError: what is wrong with the recipe or the data.
    """
    inputs = inputs or read_inputs(recipe)
    recipe, corpus, notes, start = inputs.recipe, inputs.corpus, list(inputs.notes), inputs.start
    storage = run_storage(recipe)
    require_kinds(recipe.encoders)
    of_encoder = _picture_card(recipe, inputs.before)
    recipe = with_views(_with_max_tokens(recipe, inputs.before), of_encoder)
    pictures = f"{described(recipe)} ({of_encoder.whence})"
    if of_encoder.assumed:
        notes.append(f"pictures: {pictures}; data.pictures.mean, std, … state others")
    started = model_of_started(recipe, storage) if start is None else start.model
    began = load_card(started) if started is not None else None
    # Words of `tiny` are those of the data it was made for: their rows must stay what they mean.
    vocabulary = make_vocabulary(recipe, corpus) if began is None else began.vocabulary
    card = ModelCard(
        recipe=recipe,
        classes=corpus.classes,
        sources=[part.domain for part in corpus.train[:-1]],
        target=corpus.target,
        text_config=text_config(
            recipe.encoders.text, vocabulary.size, vocabulary.pad_id, recipe.data.texts.most_tokens
        ),
        vocabulary=vocabulary,
        picture_config=picture_config(recipe.encoders.picture),
        started_from=start.described() if start is not None else began.started_from if began is not None else None,
    )
    if start is not None and start.epoch is None:
        require_same_encoders(card, start.card, start.name)
    if recipe.encoders.features is None:  # else they were counted when the features were computed
        notes += _cut_texts(recipe, corpus, vocabulary)
    device = expected_device(recipe)
    if device is not None:
        require_device(recipe, device)
    with one_thread():
        network = seeded_network(card)
        require_texts(network)
        require_size(network, recipe.data.pictures.views().crop)
        require_statistics(network, recipe.data.pictures.views().crop)
        require_parts(network, recipe.train.accumulate)
        if recipe.train.compile and device is not None:
            require_blocks(network, device)
    taken, said = _taken(start, network, card)
    notes += said
    if recipe.encoders.features is not None:
        begin_encoders(network, started, taken)
        notes.append(require_features(card, corpus, network))
    name = recipe.run.name or f"{corpus.target}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    sizes = state_sizes(card, network)
    size = sizes.files + evaluation_bytes(recipe, corpus)
    notes += require_disk(recipe, size, storage / name, sizes.frozen)
    return Prepared(
        recipe, name, storage / name, corpus, card, notes, size, sizes.memory, sizes.frozen, pictures, start, taken
    )


def _cut_texts(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> list[str]:
    """A note that says how many, if any."""
    cut, looked_at = count_cut_texts(recipe, corpus, vocabulary)
    most = recipe.data.texts.most_tokens
    return (
        [f"{cut:,} of {looked_at:,} training texts looked at have more than {most} tokens and are cut"] if cut else []
    )


def _with_max_tokens(recipe: Recipe, before: Recipe | None) -> Recipe:
    """The recipe with as many tokens as its text encoder reads, where it leaves them open."""
    texts = recipe.data.texts
    if texts.max_tokens is not None:
        return recipe
    if before is not None:
        most = before.data.texts.most_tokens
    else:
        limit = None if recipe.encoders.text.tiny is not None else context_length(recipe.encoders.text.name)
        most = min(texts.most_tokens, limit or texts.most_tokens)
    data = recipe.data.model_copy(update={"texts": texts.model_copy(update={"max_tokens": most})})
    return recipe.model_copy(update={"data": data})


def _picture_card(recipe: Recipe, before: Recipe | None) -> PictureCard:
    """The encoder's, what a run that goes on began with, or nothing where the recipe states all."""
    if not recipe.data.pictures.left_to_the_card:
        return PictureCard({}, "as the recipe states")
    if before is None:
        return picture_card(recipe.encoders.picture)
    pictures = before.data.pictures
    return PictureCard({key: getattr(pictures, key) for key in OF_THE_CARD}, "as the run began")


def _taken(start: Start | None, network: M2CAN, card: ModelCard) -> tuple[dict[str, str], list[str]]:
    """The names of the tensors that a warm start takes, and what is said of the start."""
    if start is None:
        return {}, []
    if start.epoch is not None:
        epochs = decided(card.recipe.train.epochs)
        further = f"epochs {start.epoch + 1} to {epochs}, rates by the schedule of {epochs} epochs"
        return {}, [f"goes on from the run {start.name} after epoch {start.epoch}: {further}"]
    taken = taken_from(plain_weights(start.model), start.card, network.state_dict(), card)
    return taken.names, [f"starts from the weights of {start.name}: {taken.described()}"]


def claim(prepared: Prepared) -> None:
    """Make the run's folder with its recipe, unless it is there. Raises InputError: the name is another recipe's."""
    file = prepared.folder / "recipe.json"
    require_own_name(prepared.recipe, prepared.folder)
    if prepared.start is not None and not (prepared.folder / STARTED).is_file():
        write_atomically(prepared.folder / STARTED, json_text({"name": prepared.start.name}))
    if not file.is_file():
        write_atomically(prepared.folder / DATA, json_text(data_hashes(prepared.corpus)))
        write_atomically(file, json_text(shareable(prepared.recipe)))
    if prepared.store is not None:
        with store_told(prepared.store):
            prepared.store.send(DATA, file.name, STARTED)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the other cores start Ray, or belong to workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
