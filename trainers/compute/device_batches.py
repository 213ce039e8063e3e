"""From host memory to the device: uint8 pictures travel, normalisation happens there."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.stream.encode import Allocate, Encoding, HostBatch, Vocabulary
from datasets_manifest.stream.images import PictureViews
from datasets_manifest.stream.plan import StepSlice, dropped_modality
from datasets_manifest.stream.source import FeatureBatch
from trainers.m2can.batch import Batch, sent
from trainers.recipe import Recipe


@dataclass(frozen=True)
class PictureForm:
    """What pictures become on the device: their type, and whether their channels lie last in memory, as they arrive."""

    dtype: torch.dtype
    channels_last: bool = False


def make_encoding(recipe: Recipe, vocabulary: Vocabulary, *, epoch: int = 0, strong: bool = False) -> Encoding:
    texts = recipe.data.texts
    return Encoding(
        pictures=recipe.picture_views(),
        cleaning=texts.cleaning,
        form=texts.form,
        max_tokens=texts.most_tokens,
        word_dropout=texts.word_dropout,
        vocabulary=vocabulary,
        seed=recipe.train.seed,
        epoch=epoch,
        strong=strong,
        tells_missing=recipe.network.modality_dropout is not None,
    )


def to_batch(
    host: HostBatch | FeatureBatch,
    labels_DB: np.ndarray,
    *,
    device: torch.device,
    dtype: torch.dtype,
    pictures: PictureForm | None = None,
    offset: int = 0,
    global_batch: int = 0,
) -> Batch:
    """Tensors of `host`, pictures normalised with the mean and the deviation of its views.

    A batch without any picture gets a black one that belongs to no sample (owner N), so that every worker runs the
    picture encoder.

    Args:
        dtype: of features.
        pictures: of pictures; None: `dtype`, in torch's usual layout.
    """
    form = pictures or PictureForm(dtype)

    def send(array: np.ndarray) -> Tensor:
        return sent(array, device)

    content: dict[str, Any]
    if isinstance(host, FeatureBatch):
        num_views = len(host.text) // labels_DB.size
        content = {"text": send(host.text).to(dtype), "text_mask": None}
        content |= {"pictures": send(host.picture).to(dtype), "picture_owner": None}
    else:
        num_views = len(host.tokens) // labels_DB.size
        pixels, owner = host.pictures, host.owner
        if not len(pixels):
            pixels = np.zeros((1, *pixels.shape[1:]), np.uint8)
            owner = np.array([len(host.tokens)])
        content = {"text": send(host.tokens), "text_mask": send(host.mask)}
        content |= {"text_lengths": torch.from_numpy(host.mask.sum(1))}
        counts = np.bincount(owner, minlength=len(host.tokens) + 1)
        planes = normalise(send(pixels), form.dtype, host.views, form.channels_last)
        content |= {"pictures": planes, "picture_owner": send(owner)}
        content |= {"picture_counts": torch.from_numpy(counts), "sent_counts": send(counts)}
    return Batch(
        **content,
        missing_N2=None if host.missing is None else torch.from_numpy(host.missing),
        labels_DB=send(labels_DB),
        num_views=num_views,
        global_batch=global_batch or labels_DB.shape[1],
        offset=offset,
    )


Fed = tuple[HostBatch | FeatureBatch, Batch]  # encoded rows, and what was made of them on the device


def step_batches(
    slices: Iterable[StepSlice],
    hosts: Iterable[HostBatch | FeatureBatch],
    device: torch.device,
    dtype: torch.dtype,
    pictures: PictureForm | None = None,
    dropout: tuple[int, float] | None = None,
) -> Generator[Fed]:
    """The encoded rows of steps, each with its batch.

    Args:
        dropout: seed and share with which a row's texts, or its pictures, are left out; see `left_out`.
    """
    for slice_, host in zip(slices, hosts, strict=True):
        place = {"offset": slice_.offset, "global_batch": slice_.global_batch}
        batch = to_batch(host, slice_.labels_DB, device=device, dtype=dtype, pictures=pictures, **place)
        if dropout is not None:
            assert batch.missing_N2 is not None  # the encoding of a recipe with dropout has batches tell it
            batch = replace(batch, missing_N2=batch.missing_N2 | left_out(slice_, batch.missing_N2, *dropout))
        yield host, batch


def left_out(slice_: StepSlice, missing_N2: Tensor, seed: int, share: float) -> Tensor:
    """What a step leaves out of its rows: bool [N, 2], texts and pictures, in all views of a row alike.

    A row keeps what it has alone. Args: missing_N2: what the rows lack.
    """
    places = zip(slice_.rows_DB.ravel().tolist(), slice_.positions_DB.ravel().tolist(), strict=True)
    drawn = torch.tensor([dropped_modality(seed, slice_.epoch, row, position, share) for row, position in places])
    drawn_N = drawn.repeat(len(missing_N2) // len(drawn))
    return (drawn_N[:, None] == torch.arange(2)) & ~missing_N2.any(1, keepdim=True)


def unlabelled(
    hosts: Iterable[HostBatch | FeatureBatch],
    device: torch.device,
    dtype: torch.dtype,
    pictures: PictureForm | None = None,
) -> Generator[Fed]:
    """Encoded rows of one view, each with its batch, for prediction."""
    for host in hosts:
        labels_DB = np.full((1, len(host.rows)), -1)
        yield host, to_batch(host, labels_DB, device=device, dtype=dtype, pictures=pictures)


def picture_memory(device: torch.device) -> Allocate:
    """Where a batch's pictures are collated: in pinned memory if they go on to a GPU, which saves a copy."""
    if device.type != "cuda":
        return np.empty
    return lambda shape, _: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def normalise(pictures: Tensor, dtype: torch.dtype, views: PictureViews, channels_last: bool = False) -> Tensor:
    """uint8 [P, height, width, 3] in RGB → [P, 3, height, width] of `dtype`, channels in the views' order."""
    single = dtype if dtype.itemsize > 4 else torch.float32
    mean = torch.tensor(views.mean, dtype=single) * 255
    std = torch.tensor(views.std, dtype=single) * 255
    if views.channels == "bgr":
        pictures, mean, std = (x.flip(-1) for x in (pictures, mean, std))
    planes = pictures.permute(0, 3, 1, 2)
    if dtype == single and not channels_last:
        mean, std = (sent(x.numpy(), pictures.device) for x in (mean, std))
        planes = planes.contiguous().to(single)  # rearranged while a number is a byte
        return planes.sub_(mean[:, None, None]).div_(std[:, None, None])
    # One operation, in float32: bytes are read as they lie, and what is written is rounded once.
    shift, scale = sent(torch.stack([-mean / std, 1 / std]).numpy(), pictures.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(planes.shape, dtype=dtype, device=pictures.device, memory_format=layout)
    return torch.addcmul(shift[:, None, None], planes, scale[:, None, None], out=out)
