"""Ten pictures, and the features that an encoder of ours makes of them through the stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets_manifest.stream.encode import HostBatch, Vocabulary, collate, encode_samples, index_table
from trainers.compute.device_batches import make_encoding, to_batch
from trainers.compute.vocabulary import word_vocabulary
from trainers.encoders.picture_card import picture_card, with_views
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.recipe import Recipe, make_recipe


def draw(folder: Path) -> list[Path]:
    """Ten photograph-like JPEGs of different shapes: soft colour fields with edges in them."""
    rng = np.random.default_rng(7)
    files = []
    for number in range(10):
        height, width = (int(side) for side in rng.integers(90, 400, 2) * (4 if number > 7 else 1))
        field = cv2.resize(
            rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )
        for _ in range(4):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.circle(field, centre, int(rng.integers(10, 60)), [int(c) for c in rng.integers(0, 256, 3)], -1)
        files.append(folder / f"{number}.jpg")
        cv2.imwrite(str(files[-1]), field, [cv2.IMWRITE_JPEG_QUALITY, 97])
    return files


def recipe_of(picture: dict[str, Any], **data: Any) -> Recipe:
    """A recipe with a picture encoder and the values of its card."""
    tree = {
        "data": {"sources": ["a"], "target": "b", **data},
        "encoders": {"text": {"name": "tiny:32"}, "picture": picture},
    }
    recipe = make_recipe(tree)
    return with_views(recipe, picture_card(recipe.encoders.picture))


def host_of(recipe: Recipe, vocabulary: Vocabulary, texts: list[list[str]], images: list[list[str]]) -> HostBatch:
    """The samples as the stream encodes them."""
    numbers = np.arange(len(texts))
    index = index_table(np.zeros_like(numbers), numbers, np.zeros_like(numbers))
    encoding = make_encoding(recipe, vocabulary)
    for name, column in encode_samples(texts, images, index, encoding).items():
        index = index.append_column(name, column)
    return collate(index, encoding)


@torch.no_grad()
def features(encoder: PictureEncoder, recipe: Recipe, files: list[Path]) -> Tensor:
    """[10, K], of each picture as a sample's only one."""
    host = host_of(
        recipe, word_vocabulary(recipe, ["a text"]), [["a text"]] * len(files), [[str(file)] for file in files]
    )
    labels = np.full((1, len(files)), -1)
    batch = to_batch(host, labels, device=torch.device("cpu"), dtype=torch.float32)
    return encoder.eval()(batch.pictures, batch)


def least_cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other).min())


def png(picture: np.ndarray) -> bytes:
    """The file of an RGB picture."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
