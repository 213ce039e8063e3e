"""A trained network from its folder: as it predicts, as plain weights, and as a model that is complete in itself.

Adapters (LoRA) are merged: what is registered and served has the weights of a network without them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trainers.encoders.adapters import merge_adapters
from trainers.encoders.weight_files import REFERENCE, WEIGHTS, read_weights, save_tensors
from trainers.m2can.floor import FloorHead, FloorNetwork, Network, ZeroShotHead
from trainers.model.build import build_network
from trainers.model.card import ModelCard, load_card
from trainers.model.checkpoint import load_model_weights, save_model
from trainers.model.reference import SEEN_FILE


def load_network(folder: Path) -> tuple[Network, ModelCard]:
    """The network of a checkpoint's folder `model`, with merged adapters, and the card of what it is now.

    Raises:
        InputError: missing, damaged, or weights of another network.
    """
    card = load_card(folder)
    built = build_network(
        card.recipe, card.text_config, len(card.classes), load_weights=False, pictures=card.picture_config
    )
    network: Network = built
    if card.floor or card.zero_shot:
        widths = built.text_encoder.width, built.picture_encoder.width
        head: FloorHead | ZeroShotHead = FloorHead(widths, len(card.classes))
        if card.zero_shot:
            head = ZeroShotHead(widths, built.projected, len(card.classes))
        network = FloorNetwork(built.text_encoder, built.picture_encoder, head)
    if card.recipe.train.precision == "fp64":
        network = network.double()
    load_model_weights(folder, network)
    adapters = card.recipe.encoders.adapters
    if adapters:
        merge_adapters(network)
        merged = {name: section.model_dump(mode="json") for name, section in adapters.items()}
        card = replace(card, recipe=card.recipe.without_adapters(), merged_adapters=merged)
    return network, card


def plain_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of the model in `folder`, by their names in a network without adapters. Raises InputError: damaged."""
    if load_card(folder).recipe.encoders.adapters:
        return load_network(folder)[0].state_dict()
    return read_weights(folder)


@contextmanager
def complete_model(folder: Path) -> Iterator[Path]:
    """The folder of a model that has all its weights, plain and in one file: `folder`, or a copy of the same name while this
    is entered.

    Raises:
        InputError: a file is missing or damaged.
    """
    if not (folder / REFERENCE).is_file():  # a checkpoint with adapters has one, of the weights that they stand beside
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="m2can-model-") as place:
        copy = Path(place) / folder.name
        if load_card(folder).recipe.encoders.adapters:
            save_model(copy, *load_network(folder))
            if (folder / SEEN_FILE).is_file():
                shutil.copy(folder / SEEN_FILE, copy)
        else:
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(WEIGHTS, REFERENCE))
            save_tensors(copy / WEIGHTS, read_weights(folder))
        yield copy
