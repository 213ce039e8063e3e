"""The zero-shot classifier of a run whose network begins as a dual encoder: class names in the recipe's prompts, no training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.stream.encode import collate, encode_samples, index_table
from trainers.compute.device_batches import make_encoding, to_batch
from trainers.loop.loop import Loop
from trainers.m2can.floor import Features, ZeroShotHead, class_features, principal_components

_MODALITIES = ("text", "picture")


def make_zero_shot(loop: Loop, target: Features) -> ZeroShotHead | None:
    """The head that classifies by the similarity to class names; None where the projections are not a dual encoder's own.

    Args:
        target: features of the target's training rows, by modality, whose principal components are what `embed` gives.
    """
    network, scale = loop.network, loop.network.similarity_scale
    if scale is None or loop.recipe.train.start_from is not None:
        return None
    widths = network.text_encoder.width, network.picture_encoder.width
    head = ZeroShotHead(widths, network.projected, network.num_classes).to(loop.device, loop.dtype)
    head.take(network, encode_prompts(loop), scale)
    components = principal_components({"joint": head.joint(joined(head, target)).double()})["joint"]
    head.components_FA.copy_(components)
    return head


@torch.no_grad()
def encode_prompts(loop: Loop) -> Tensor:
    """A unit feature of each class from its prompts, [C, A] (class_features). Prompts are cleaned and cut as the data's texts."""
    network, recipe = loop.network, loop.recipe
    names = [name.replace("_", " ") for name in loop.corpus.classes]
    texts = [[template.replace("{}", name)] for template in recipe.encoders.prompts for name in names]
    encoding = make_encoding(recipe, loop.card.vocabulary)
    numbers = np.arange(len(texts))
    index = index_table(np.zeros_like(numbers), numbers, np.zeros_like(numbers))
    for column, values in encode_samples(texts, [[] for _ in texts], index, encoding).items():
        index = index.append_column(column, values)
    labels_DB = np.full((1, len(texts)), -1)
    batch = to_batch(collate(index, encoding), labels_DB, device=loop.device, dtype=loop.dtype)
    training = network.training
    network.eval()
    with loop.autocast():
        features_NK = network.text_encoder(batch.text, batch.text_mask, batch.text_lengths)
    unit_NA = network.text_projection(features_NK.to(loop.dtype))
    network.train(training)
    return class_features(unit_NA.unflatten(0, (len(recipe.encoders.prompts), len(names))))


def joined(head: ZeroShotHead, features: Features) -> Tensor:
    """Features by modality as the head takes them, [N, K + K']; zeros where one is not read."""
    like = next(iter(features.values()))
    parts = [
        features[name] if name in features else like.new_zeros(len(like), width)
        for name, width in zip(_MODALITIES, head.widths, strict=True)
    ]
    return torch.cat(parts, 1)
