"""The other side of `benchmarks.speed`: the method with the published code's cost, without any optimisation.

Written from the method: every sample's pictures are a call of their own of the picture encoder, every text is padded to
the most tokens, every sample to the most pictures; Pillow decodes and torchvision's transforms make the views in
processes of torch's DataLoader, which send padded floating-point tensors. Projections, fusion, heads and terms are ours:
they cost little on either side, and both sides give numbers that can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.images import ASPECT, IMAGENET_MEAN, IMAGENET_STD
from datasets_manifest.stream.text import clean, drop_words, join_sentences, tokenizer_from_json
from trainers.compute.device_batches import normalise
from trainers.m2can.batch import Batch
from trainers.m2can.encoders.batch_norm import GroupedBatchNorm2d, PictureGroups
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.network import M2CAN


class PaddedTexts(nn.Module):
    """A call for each view of each domain, [B, most tokens]."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder, self.width = encoder, encoder.width
        self.calls = 1  # views · domains of the batch

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor, _: Any = None) -> Tensor:
        parts = zip(tokens_NL.chunk(self.calls), mask_NL.chunk(self.calls), strict=True)
        return torch.cat([self.encoder(tokens, mask) for tokens, mask in parts])


class PicturesOneByOne(nn.Module):
    """A call for each sample; pictures [N, slots, 3, height, width], how many of the slots are taken [N]."""

    def __init__(self, encoder: PictureEncoder) -> None:
        super().__init__()
        self.model, self.width = ordinary_batch_norm(encoder.model), encoder.width
        self.groups = PictureGroups("frozen")  # no layer of ours is left to normalise in groups

    def forward(self, pictures_NP: Tensor, batch: Batch) -> Tensor:
        assert batch.picture_owner is not None
        shape = batch.num_views, batch.num_domains, batch.size
        features: dict[int, Tensor] = {}
        numbers = np.arange(batch.num_rows).reshape(shape)
        for number in numbers.transpose(1, 0, 2).ravel().tolist():  # domain, weak samples, strong samples
            taken = int(batch.picture_owner[number])
            features[number] = self.model(pictures_NP[number, :taken]).mean(0)
        return torch.stack([features[number] for number in range(batch.num_rows)])


def ordinary_batch_norm(model: nn.Module) -> nn.Module:
    """torch's own layers in the places of ours, with the same tensors."""
    for name, child in model.named_children():
        if isinstance(child, GroupedBatchNorm2d):
            plain = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
            plain.load_state_dict(child.state_dict())
            setattr(model, name, plain)
        else:
            ordinary_batch_norm(child)
    return model


def baseline_network(network: M2CAN) -> M2CAN:
    """`network`'s parts and weights, encoders called as the published code calls them. `network` is used up."""
    assert isinstance(network.text_encoder, TextEncoder) and isinstance(network.picture_encoder, PictureEncoder)
    made = M2CAN(
        PaddedTexts(network.text_encoder),  # type: ignore[arg-type]
        PicturesOneByOne(network.picture_encoder),  # type: ignore[arg-type]
        len(network.heads),
        network.num_classes,
    )
    for name in ("text_projection", "picture_projection", "fusion", "heads", "text_head", "picture_head"):
        setattr(made, name, getattr(network, name))
    return made.train(network.training)


def pad(host: HostBatch, labels_DB: np.ndarray, *, tokens: int, slots: int) -> Batch:
    """The batch as the published loader gives it: every text of `tokens`, every sample of `slots` pictures."""
    rows, length = host.tokens.shape
    text = torch.zeros(rows, tokens, dtype=torch.int64)
    mask = torch.zeros(rows, tokens, dtype=torch.int64)
    text[:, :length], mask[:, :length] = torch.from_numpy(host.tokens), torch.from_numpy(host.mask)
    given = normalise(torch.from_numpy(host.pictures), torch.float32, host.views)
    counts = torch.bincount(torch.from_numpy(host.owner), minlength=rows)
    pictures = given.new_zeros(rows, slots, *given.shape[1:])
    place = torch.arange(len(given)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    pictures[torch.from_numpy(host.owner), place] = given
    return padded_batch(text, mask, pictures, counts, labels_DB)


def padded_batch(text: Tensor, mask: Tensor, pictures: Tensor, counts: Tensor, labels_DB: np.ndarray) -> Batch:
    return Batch(
        text=text,
        text_mask=mask,
        pictures=pictures,
        picture_owner=counts,
        labels_DB=torch.from_numpy(labels_DB),
        num_views=len(text) // labels_DB.size,
        global_batch=labels_DB.shape[1],
    )


@dataclass
class PaddedSamples(Dataset[tuple[Tensor, ...]]):
    """Rows of a table, both views; pictures as float [slots, 3, crop, crop], tokens [most tokens].

    texts: of each row. images: of each row, paths.
    """

    texts: Sequence[list[str]]
    images: Sequence[list[str]]
    encoding: Encoding

    def __post_init__(self) -> None:
        pictures, strong = self.encoding.pictures, self.encoding.pictures.strong
        last = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.weak = transforms.Compose(
            [transforms.Resize(pictures.resize), transforms.CenterCrop(pictures.crop), *last]
        )
        colour = transforms.ColorJitter(*strong.jitter)
        self.strong = transforms.Compose(
            [
                transforms.RandomResizedCrop(pictures.crop, strong.area, ASPECT),
                transforms.RandomHorizontalFlip(strong.flip),
                transforms.RandomApply([colour], strong.jitter_p),
                transforms.RandomGrayscale(strong.greyscale),
                *last,
            ]
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        spec, crop = self.encoding, self.encoding.pictures.crop
        slots = torch.zeros(2, spec.pictures.max_pictures, 3, crop, crop)
        images = self.images[row][: spec.pictures.max_pictures]
        for place, path in enumerate(images):
            picture = Image.open(path).convert("RGB")
            slots[0, place] = self.weak(picture)
            if spec.strong:
                slots[1, place] = self.strong(picture)
        tokens, mask = self._tokens(self.texts[row], np.random.default_rng())
        views = 2 if spec.strong else 1
        return tokens[:views], mask[:views], slots[:views], torch.full((views,), len(images))

    def _tokens(self, sentences: list[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        spec, words = self.encoding, self.encoding.vocabulary
        tokenizer = tokenizer_from_json(words.json, spec.max_tokens, words.cls_token, words.sep_token, words.pad_token)
        weak = [clean(sentence, spec.cleaning) for sentence in sentences]
        strong = [drop_words(sentence, spec.word_dropout, rng) for sentence in weak]
        tokens = torch.zeros(2, spec.max_tokens, dtype=torch.int64)
        mask = torch.zeros(2, spec.max_tokens, dtype=torch.int64)
        for view, text in enumerate((weak, strong)):
            ids = tokenizer.encode([join_sentences(text, spec.form, words.sep_token, words.cls_token)])[0]
            tokens[view, : len(ids)], mask[view, : len(ids)] = torch.from_numpy(ids.astype(np.int64)), 1
        return tokens, mask


def load(samples: PaddedSamples, batches: Sequence[np.ndarray], workers: int) -> DataLoader[Any]:
    """The rows of `batches` in their order, by `workers` processes (0: none); one worker's torch has one thread.

    They are forked, as a script's are on Linux: in a process that was itself spawned they would be spawned too.
    """
    context = "fork" if workers else None
    return DataLoader(
        samples, batch_sampler=[b.tolist() for b in batches], num_workers=workers, multiprocessing_context=context
    )


def loaded_batch(loaded: list[Tensor], labels_DB: np.ndarray) -> Batch:
    """What a loader gives, [rows, views, …], as a batch, views first."""
    tokens, mask, pictures, counts = (x.transpose(0, 1).flatten(0, 1) for x in loaded)
    return padded_batch(tokens, mask, pictures, counts, labels_DB)
