"""Rows, networks and steps that the benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import Adam
from transformers import BertConfig, BertModel

from datasets_manifest.stream.encode import HostBatch
from trainers.compute.compiled import compile_encoders
from trainers.compute.precision import autocast_of, choose_kernels, choose_layout
from trainers.encoders import encoders
from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.encoders.freezing import freeze
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.network import M2CAN
from trainers.model import build, optimizers
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.training_rule import decide
from trainers.step.gradients import data_parallel
from trainers.step.step import Step

LENGTHS = (25, 0.6)  # of the texts, tokens: log-normal, median and σ


@dataclass(frozen=True)
class Size:
    """Of the measured step: the table's, or one that takes seconds.

    pixels: of a picture's side. words: of the vocabulary. batch: rows a domain. pictures: of each row.
    dropout: of the text encoder; 0 where results are compared.
    """

    picture: str = "torchvision:resnet50"
    pixels: int = 96
    hidden: int = 768
    layers: int = 2
    words: int = 30_522
    batch: int = 8
    tokens: int = 200
    repeats: int = 5
    sources: int = 2
    classes: int = 3
    pictures: int = 1
    dropout: float = 0.0

    @property
    def rows(self) -> int:
        """Of a step, all domains together."""
        return (self.sources + 1) * self.batch


FULL = Size()
QUICK = Size("tiny", 64, 32, 1, 500, 4, 60, 3)


def recipe_of(size: Size, preset: str, *overrides: str) -> Recipe:
    from trainers.recipe import apply_override

    tree: dict[str, Any] = {
        "preset": preset,
        "data": {"sources": ["s"] * size.sources, "target": "t", "texts": {"max_tokens": size.tokens}},
        "encoders": {"picture": {"name": size.picture, "weights": "random"}},
        "train": {"batch_size": size.batch},
    }
    if size.picture == "tiny":
        tree["encoders"]["picture"]["head"] = "none"
    for override in overrides:
        apply_override(tree, override)
    return decide(make_recipe(tree), size.batch)[0]


def make_network(size: Size, recipe: Recipe) -> M2CAN:
    """From the same seed the same weights."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=size.words,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // 64),
        intermediate_size=4 * size.hidden,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
    )
    pooling = recipe.encoders.text.pooling
    text = TextEncoder(BertModel(config, add_pooling_layer=pooling == "pooler"), pooling)
    freeze(text, recipe.encoders.text.freeze)
    picture = encoders.build_picture_encoder(recipe.encoders.picture, load_weights=True)
    return M2CAN(text, picture, size.sources, size.classes, **recipe.network.model_dump()).train()


def make_rows(size: Size, views: int, rows: int, seed: int = 0) -> HostBatch:
    """Rows of `views` views; token lengths log-normal, at most `size.tokens`."""
    random = np.random.default_rng(seed)
    drawn = np.exp(np.log(LENGTHS[0]) + LENGTHS[1] * random.standard_normal(views * rows))
    lengths = drawn.round().astype(int).clip(3, size.tokens)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    return HostBatch(
        tokens=random.integers(1, size.words, mask.shape) * mask,
        mask=mask,
        pictures=random.integers(0, 256, (views * rows * size.pictures, size.pixels, size.pixels, 3), dtype=np.uint8),
        owner=np.repeat(np.arange(views * rows), size.pictures),
        rows=np.arange(rows),
        bad=[],
    )


def cut_rows(host: HostBatch, rows: int) -> list[HostBatch]:
    """A batch of one view with one picture a row, in batches of at most `rows`."""
    return [
        HostBatch(
            tokens=host.tokens[part],
            mask=host.mask[part],
            pictures=host.pictures[part],
            owner=np.arange(len(part)),
            rows=host.rows[part],
            bad=[],
        )
        for part in np.split(np.arange(len(host.rows)), range(rows, len(host.rows), rows))
    ]


def make_labels(size: Size, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size.classes, (size.sources + 1, size.batch))


def make_step(
    network: M2CAN,
    recipe: Recipe,
    device: torch.device,
    *,
    ordinary: bool = False,
    collective: Collective | None = None,
) -> Step:
    """As a training worker makes it, with its settings of the process; `ordinary`: without them, and with torch's
    default Adam, as the published code has it."""
    network.to(device)
    if not ordinary:
        choose_kernels(recipe, device)
        choose_layout(network, recipe, device)
        if recipe.train.compile:
            compile_encoders(network, device, "inductor" if device.type == "cuda" else "aot_eager")
    discriminators = build.build_discriminators(
        len(network.heads), network.num_classes, recipe.objective.discriminators
    ).to(device)
    return step_of(network, discriminators, recipe, device, ordinary=ordinary, collective=collective or Collective())


def step_of(
    network: M2CAN,
    discriminators: Discriminators,
    recipe: Recipe,
    device: torch.device,
    *,
    ordinary: bool = False,
    collective: Collective,
) -> Step:
    """A step of networks that are on the device."""
    optimizer, other = optimizers.build_optimizers(network, discriminators, recipe.optimizer)
    if ordinary:
        optimizer = Adam(optimizer.param_groups)  # groups keep their rates
        for group in optimizer.param_groups:
            group["fused"] = None
    return Step(
        network=network,
        model=data_parallel(network, collective),
        discriminators=discriminators,
        objective=build.build_objective(recipe),
        optimizer=optimizer,
        discriminator_optimizer=other,
        schedule=optimizers.build_schedule(recipe.schedule, 10, 100),
        rho=recipe.sam.rho,
        collective=collective,
        autocast=autocast_of(recipe, device),
        parts=recipe.train.accumulate,
    )
