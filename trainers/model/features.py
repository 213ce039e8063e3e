"""Frozen encoders' features: what they depend on, whether a folder's are those of a recipe, and how they are computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from datasets_manifest.errors import InputError
from datasets_manifest.features.feature_files import (
    SCHEMA_VERSION,
    SHARD_ROWS,
    TOWERS,
    FeatureFolder,
    digest_of,
    feature_column,
    views_of,
)
from datasets_manifest.features.feature_views import collate_view
from datasets_manifest.stream.encode import Encoding
from trainers.compute.device_batches import to_batch
from trainers.compute.precision import dtype_of
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.card import ModelCard
from trainers.model.warm_start import picture_kind, text_kind
from trainers.recipe import Recipe

FIELD = "encoders.features"
_VERSIONS = ("m2can", "torch", "torchvision", "transformers", "pillow", "opencv-python-headless", "tokenizers")
# `preset` says what becomes of transparent pictures: Recipe.picture_views.
_PREPROCESSING = ("data.pictures.", "data.texts.", "encoders.text.pooling", "preset")


def require_frozen(recipe: Recipe) -> None:
    """Raises InputError: an encoder is trained, so that its features move."""
    for tower in TOWERS:
        frozen = getattr(recipe.encoders, tower).freeze
        if frozen != "all":
            problem = "features are of an encoder that is not trained"
            raise InputError(problem, field=f"encoders.{tower}.freeze", value=frozen, wanted="`all`")


def described(card: ModelCard, network: M2CAN, records: pa.Table, strong: int) -> dict[str, Any]:
    """What features.json says of the features of a network's encoders, but for the shards.

    Args:
        network: with the weights that a run begins with.
        records: see feature_files.records_of.
        strong: number of strong views.
    """
    recipe = card.recipe
    parts = dict.fromkeys(zip(*_names(records), strict=True), 0)
    for domain, split in zip(*_names(records), strict=True):
        parts[domain, split] += 1
    return {
        "schema_version": SCHEMA_VERSION,
        "encoders": {
            tower: {
                "name": getattr(recipe.encoders, tower).name,
                "weights": getattr(recipe.encoders, tower).weights,
                "width": getattr(network, f"{tower}_encoder").width,
                "sha256": found,
            }
            for tower, found in encoder_digests(card, network).items()
        },
        "vocabulary": vocabulary_digest(card),
        "preprocessing": preprocessing(recipe),
        "views": {
            "strong": strong,
            "seed": recipe.train.seed,
            "rule": "weak: that of evaluation; strong k: drawn by (seed, epoch k, row, position 0); epoch e trains on "
            "strong e mod n",
        },
        "computed_in": str(dtype_of(recipe)).removeprefix("torch."),
        "classes": card.classes,
        "parts": [{"domain": domain, "split": split, "rows": rows} for (domain, split), rows in parts.items()],
        "rows": records.num_rows,
        "records": digest_of(records),
        "shard_rows": SHARD_ROWS,
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _names(records: pa.Table) -> tuple[list[str], list[str]]:
    return records["domain"].to_pylist(), records["split"].to_pylist()


def preprocessing(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe, with their values, that decide what the encoders see and what is taken of their outputs."""
    found = {key: value for key, value in recipe.flat().items() if key.startswith(_PREPROCESSING)}
    return dict(json.loads(json.dumps(found)))


def encoder_digests(card: ModelCard, network: M2CAN) -> dict[str, str]:
    """SHA-256 of each encoder's configuration, weights and buffers, by tower."""
    kinds = {"text": text_kind(card), "picture": picture_kind(card)}
    return {tower: _digest(getattr(network, f"{tower}_encoder"), kinds[tower]) for tower in TOWERS}


def _digest(encoder: nn.Module, kind: object) -> str:
    found = hashlib.sha256(json.dumps(kind, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def vocabulary_digest(card: ModelCard) -> str:
    return hashlib.sha256(json.dumps(asdict(card.vocabulary), sort_keys=True).encode()).hexdigest()


def require_same_features(folder: FeatureFolder, card: ModelCard, network: M2CAN) -> None:
    """Look whether a folder's features are those of this network's encoders and this recipe's preprocessing.

    Raises:
        InputError: names the first key that differs.
    """
    recipe, content = card.recipe, folder.content
    again = "features of this recipe: m2can features RECIPE in a new folder"
    before, now = content["preprocessing"], preprocessing(recipe)
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            problem = f"is not what the features in {folder.folder} were computed with"
            raise InputError(
                problem, field=key, value=now.get(key), wanted=f"{key}={json.dumps(before.get(key))}, or {again}"
            )
    if vocabulary_digest(card) != content["vocabulary"]:
        problem = f"has another vocabulary than that of the features in {folder.folder}"
        raise InputError(problem, field="encoders.text.name", value=recipe.encoders.text.name, wanted=again)
    for tower, found in encoder_digests(card, network).items():
        if found != content["encoders"][tower]["sha256"]:
            problem = f"gives another {tower} encoder than that of the features in {folder.folder}"
            key, value, wanted = _deciding(recipe, tower, content)
            raise InputError(problem, field=key, value=value, wanted=f"{key}={wanted}, or {again}" if wanted else again)


def _deciding(recipe: Recipe, tower: str, content: dict[str, Any]) -> tuple[str, Any, Any]:
    """The key that an encoder's weights differ by, its value, and that of the features; None if no key does."""
    section, theirs = getattr(recipe.encoders, tower), content["encoders"][tower]
    for key in ("name", "weights"):
        if getattr(section, key) != theirs[key]:
            return f"encoders.{tower}.{key}", getattr(section, key), theirs[key]
    if recipe.train.seed != content["views"]["seed"] and (section.tiny or section.weights == "random"):
        return "train.seed", recipe.train.seed, content["views"]["seed"]
    return f"encoders.{tower}.weights", section.weights, None


def encoder_weights(network: M2CAN) -> dict[str, Tensor]:
    """The encoders' part of a network's state dict."""
    prefixes = tuple(f"{tower}_encoder." for tower in TOWERS)
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefixes)}


class FrozenEncoders:
    """The encoders of a network in eval mode: views in, features out. They compute in float32, in float64 for a recipe of fp64.

    Args:
        weights: of `encoder_weights`.
    """

    def __init__(self, card: ModelCard, weights: dict[str, Tensor], device: torch.device) -> None:
        network = build_network(
            card.recipe, card.text_config, len(card.classes), load_weights=False, pictures=card.picture_config
        )
        network.load_state_dict(weights, strict=False)  # what comes after the encoders is not used
        self.device, self.dtype = device, dtype_of(card.recipe)
        network = network.eval().to(device, self.dtype)
        self.text, self.picture = network.text_encoder, network.picture_encoder

    @torch.inference_mode()
    def __call__(self, encoded: pa.Table, encoding: Encoding, strong: int) -> pa.Table:
        """Features of what feature_views.encode_views made: `row`, `bad`, and `<tower>_<view>` for each tower and view."""
        found = encoded.select(["row", "bad"])
        for view in views_of(strong):
            host = collate_view(encoded, view, encoding)
            batch = to_batch(host, np.full((1, len(host.rows)), -1), device=self.device, dtype=self.dtype)
            features = {
                "text": self.text(batch.text, batch.text_mask, batch.text_lengths),
                "picture": self.picture(batch.pictures, batch),
            }
            for tower, features_NK in features.items():
                found = found.append_column(f"{tower}_{view}", feature_column(features_NK.cpu().numpy()))
        return found
