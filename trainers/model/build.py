"""From a recipe to network, discriminators and objective."""

from __future__ import annotations

from typing import Any

from trainers.encoders.encoders import ALIGNED, build_picture_encoder, build_text_encoder
from trainers.encoders.hub_models import read_model, require_equal, similarity_scale, start_projections
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.names import Adversary
from trainers.m2can.network import FUSED, M2CAN
from trainers.m2can.objective import Objective
from trainers.recipe import Recipe


def build_network(
    recipe: Recipe,
    config: dict[str, Any],
    num_classes: int,
    *,
    load_weights: bool,
    pictures: dict[str, Any] | None = None,
) -> M2CAN:
    """The network of a recipe.

    Args:
        config: the text encoder's configuration (text_config). pictures: the picture encoder's (picture_config).
        load_weights: False where a checkpoint's weights follow anyway.
    """
    encoders, again = recipe.encoders, recipe.encoders.checkpointed
    sections = encoders.text, encoders.picture
    own = load_weights and encoders.both is not None and all(s.weights == "pretrained" for s in sections)
    dual = read_model(encoders.text.name, "text", encoders.text.dropout) if own else None
    text = build_text_encoder(encoders.text, config, load_weights=load_weights, checkpointed=again[0], dual=dual)
    picture = build_picture_encoder(
        encoders.picture, load_weights=load_weights, checkpointed=again[1], config=pictures, dual=dual
    )
    aligned = (pictures or {}).get(ALIGNED) if encoders.both is not None else None
    network = M2CAN(
        text, picture, len(recipe.data.sources), num_classes, aligned=aligned, **recipe.network.model_dump()
    )
    if dual is not None:
        projections = network.text_projection.linear, network.picture_projection.linear
        start_projections(dual, *projections)
        require_equal(dual, text, picture.model, projections)
        network.similarity_scale = similarity_scale(dual)
    return network


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
