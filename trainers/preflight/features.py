"""Looks at features before a run trains on them; and at the weights that a run's encoders begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datasets_manifest.features.feature_files import FeatureFolder, Features, records_of
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.records.sharded_table import in_memory
from datasets_manifest.stream.encode import Vocabulary, blank_texts
from trainers.compute.device_batches import make_encoding
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.card import ModelCard
from trainers.model.features import FIELD, encoder_weights, require_same_features
from trainers.model.trained_network import plain_weights
from trainers.recipe import Recipe
from trainers.store import is_store
from trainers.store.run_store import store_of, store_told


def seeded_network(card: ModelCard) -> M2CAN:
    """The network as the loop builds it, before it takes weights of another model: what is random is drawn by `train.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.recipe.train.seed)
        return build_network(
            card.recipe, card.text_config, len(card.classes), load_weights=True, pictures=card.picture_config
        )


def begin_encoders(network: M2CAN, started: Path | None, taken: dict[str, str]) -> None:
    """Give a network's encoders the weights that they begin with.

    Args:
        started: the model that the run starts from, or one of its own checkpoints; None: the encoders' own weights.
        taken: the network's tensors → those of the model whose weights they take; empty: all of the same name.
    """
    if started is None:
        return
    found, wanted = plain_weights(started), encoder_weights(network)
    names = taken or {name: name for name in wanted}
    network.load_state_dict({ours: found[names[ours]] for ours in wanted if ours in names}, strict=False)


def require_features(card: ModelCard, corpus: Corpus, network: M2CAN) -> str:
    """Look whether the folder `encoders.features` holds features of this network's encoders, whole, for all records.

    Returns:
        what they are, in words.

    Raises:
        InputError: it does not; names the key or the record that differs.
    """
    folder = _folder(card.recipe)
    folder.verify()
    folder.places(records_of(corpus))
    require_same_features(folder, card, network)
    return f"trains on features: {folder.described()}"


def _folder(recipe: Recipe) -> FeatureFolder:
    """Where the recipe's features lie; those of an object store are brought to this machine, once."""
    named = str(recipe.encoders.features)
    if not is_store(named):
        return FeatureFolder(Path(named), FIELD)
    store = store_of(named, "read", FIELD)
    with store_told(store, FIELD):
        store.bring(["*"])
    return FeatureFolder(store.folder, FIELD)


def read_features(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> Features:
    """The features of a corpus' records, in its table's order; see `require_features`."""
    found, encoding = _folder(recipe).read(records_of(corpus)), make_encoding(recipe, vocabulary)
    if not encoding.tells_missing:
        return found
    blank_N = blank_texts(in_memory(corpus.table.select(["texts"]))["texts"].to_pylist(), encoding)
    return replace(found, missing_N2=np.stack([blank_N, ~found.picture_VNK[0].any(1)], 1))
