"""From a recipe to network, discriminators and objective."""

from __future__ import annotations

from typing import Any

from trainers.m2can.discriminators import Discriminators
from trainers.m2can.names import Adversary
from trainers.m2can.network import FUSED, M2CAN
from trainers.m2can.objective import Objective
from trainers.model.encoders import build_picture_encoder, build_text_encoder
from trainers.recipe import Recipe


def build_network(recipe: Recipe, config: dict[str, Any], num_classes: int, *, load_weights: bool) -> M2CAN:
    """The network of a recipe.

    Args:
        config: the text encoder's configuration (text_config).
        load_weights: False where a checkpoint's weights follow anyway.
    """
    again = recipe.encoders.checkpointed
    text = build_text_encoder(recipe.encoders.text, config, load_weights=load_weights, checkpointed=again[0])
    picture = build_picture_encoder(recipe.encoders.picture, load_weights=load_weights, checkpointed=again[1])
    return M2CAN(text, picture, len(recipe.data.sources), num_classes, **recipe.network.model_dump())


def build_discriminators(num_sources: int, num_classes: int, adversary: Adversary = "m2can") -> Discriminators:
    return Discriminators(num_sources + 1, FUSED, num_classes, adversary)


def build_objective(recipe: Recipe) -> Objective:
    section = recipe.objective
    return Objective(
        num_sources=len(recipe.data.sources),
        weights=section.weights(),
        temperature=section.temperature,
        smoothing=section.smoothing,
        discriminators=section.discriminators,
    )
