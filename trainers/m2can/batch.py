"""Input and output of the network.

Legend of the shape suffixes in this package:
    V view (0 weak, 1 strong)   D domain (sources first, target last)   B sample of this worker's slice of the batch
    N = V·D·B, in that order    L token    P picture    K feature    C class    H head    Q view pair (text × picture)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from trainers.m2can.collective import slice_sizes


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device. To a GPU it goes from pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True)
class Batch:
    """One worker's slice of a step's global batch.

    Args:
        text: token ids [N, L], or text features [N, K].
        text_mask: 1 where a token is, [N, L]; None for features.
        text_lengths: tokens of each text, [N], in host memory; None where they are not known.
        pictures: normalised pictures [P, 3, height, width] without empty slots, or picture features [N, K].
        picture_owner: which of the N samples-in-a-view a picture belongs to, ascending, [P]; None for features.
        labels_DB: class, or pseudo label; -1 where there is none.
        num_views: 2 in training, 1 in prediction.
        global_batch: samples per domain over all workers.
        offset: place of this slice's first sample in the global batch.
        whole: the worker's whole slice, if this batch is a part of it (see `split`).
        picture_counts: pictures of each row, then placeholders, [N + 1], in host memory: what is decided by them needs
            no answer of the device. None where they are not known.
        sent_counts: the same on the device; None: they are sent when they are wanted.
        labelled_D: samples with a label in the global batch, by domain; None: the task term asks the workers.
        missing_N2: whether the text, and whether the pictures, of a row are missing, bool in host memory; None: nothing is.
    """

    text: Tensor
    text_mask: Tensor | None
    pictures: Tensor
    picture_owner: Tensor | None
    labels_DB: Tensor
    num_views: int = 2
    global_batch: int = 0
    offset: int = 0
    whole: Batch | None = None
    text_lengths: Tensor | None = None
    picture_counts: Tensor | None = None
    sent_counts: Tensor | None = None
    labelled_D: Tensor | None = None
    missing_N2: Tensor | None = None

    @property
    def holds_features(self) -> bool:
        """Whether it holds features in the place of tokens and pictures."""
        return self.text_mask is None and self.picture_owner is None

    @property
    def num_domains(self) -> int:
        return self.labels_DB.shape[0]

    @property
    def size(self) -> int:
        return self.labels_DB.shape[1]

    @property
    def num_rows(self) -> int:
        return self.num_views * self.num_domains * self.size

    def pictures_of_rows(self) -> Tensor:
        """`picture_counts`, made from the owners where they are not known."""
        if self.picture_counts is not None:
            return self.picture_counts
        assert self.picture_owner is not None
        return torch.bincount(self.picture_owner.cpu(), minlength=self.num_rows + 1)

    def counts_on(self, device: torch.device) -> Tensor:
        """`pictures_of_rows` on the encoders' device."""
        return sent(self.pictures_of_rows().numpy(), device) if self.sent_counts is None else self.sent_counts

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On `device`; what is floating becomes `dtype`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else x.dtype, non_blocking=True)

        return replace(
            self,
            text=move(self.text),
            text_mask=None if self.text_mask is None else move(self.text_mask),
            pictures=move(self.pictures),
            picture_owner=None if self.picture_owner is None else move(self.picture_owner),
            labels_DB=move(self.labels_DB),
            sent_counts=None if self.sent_counts is None else move(self.sent_counts),
        )

    def split(self, parts: int) -> list[Batch]:
        """The slice in at most `parts` parts of nearly equal numbers of samples, each with all domains and views."""
        sizes = slice_sizes(self.size, min(parts, self.size))
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return (
            [self._rows(start, size) for start, size in zip(starts, sizes, strict=True)] if len(sizes) > 1 else [self]
        )

    def _rows(self, start: int, size: int) -> Batch:
        def take(x_N: Tensor) -> Tensor:
            return x_N.unflatten(0, (-1, self.size))[:, start : start + size].flatten(0, 1)

        pictures, owner_P, counts_G = self.pictures, self.picture_owner, None
        if owner_P is None:
            pictures = take(pictures)
        else:
            before_G = self.pictures_of_rows()
            counts_G = torch.cat([take(before_G[:-1]), before_G.new_zeros(1)])
            numbers_G = torch.arange(len(before_G))
            mine_G = (numbers_G % self.size >= start) & (numbers_G % self.size < start + size)
            mine_G[-1] = False
            mine_P = mine_G.repeat_interleave(before_G).nonzero().squeeze(1)
            pictures = self.pictures[mine_P.to(pictures.device)]
            if not len(mine_P):  # a placeholder, as in every batch without pictures
                pictures = self.pictures.new_zeros(1, *self.pictures.shape[1:])
                counts_G[-1] = 1
            owner_P = torch.arange(len(counts_G)).repeat_interleave(counts_G).to(owner_P.device)
        return replace(
            self,
            text=take(self.text),
            text_mask=None if self.text_mask is None else take(self.text_mask),
            text_lengths=None if self.text_lengths is None else take(self.text_lengths),
            pictures=pictures,
            picture_owner=owner_P,
            picture_counts=counts_G,
            sent_counts=None,
            missing_N2=None if self.missing_N2 is None else take(self.missing_N2),
            labels_DB=self.labels_DB[:, start : start + size],
            offset=self.offset + start,
            whole=self,
        )


@dataclass(frozen=True)
class Outputs:
    """The network's outputs for a batch.

    Args:
        text_VDBK: unit text features.
        picture_VDBK: unit picture features.
        fused_DBK: fused features of weak text × weak picture.
        logits_HQDBC: logits of each head for each view pair; pair 0 is weak × weak.
        text_logits_DBC: the text head on the weak view.
        picture_logits_DBC: the picture head on the weak view.
    """

    text_VDBK: Tensor
    picture_VDBK: Tensor
    fused_DBK: Tensor
    logits_HQDBC: Tensor
    text_logits_DBC: Tensor
    picture_logits_DBC: Tensor

    @property
    def fused_logits_DBC(self) -> Tensor:
        """The prediction: mean of the heads' logits on weak × weak."""
        return self.logits_HQDBC[:, 0].mean(0)

    def tensors(self) -> list[Tensor]:
        """All of them; in each the samples B are the last dimension but one."""
        return [getattr(self, field.name) for field in fields(self)]

    def single(self) -> Outputs:
        """Half precision becomes float32: the terms are computed in it."""
        return Outputs(*(x.float() if x.dtype.itemsize < 4 else x for x in self.tensors()))

    @staticmethod
    def leaves(parts: list[Outputs]) -> Outputs:
        """The outputs of the parts of a batch, joined, cut from their graph, ready to take gradients."""
        joined = (torch.cat(same, -2) for same in zip(*(part.tensors() for part in parts), strict=True))
        return Outputs(*(x.detach().requires_grad_() for x in joined))
