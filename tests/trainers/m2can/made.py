"""Small random inputs for the tests of the method, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.batch import Batch, Outputs


def outputs(domains: int, size: int = 5, heads: int = 2, classes: int = 3, width: int = 6, seed: int = 0) -> Outputs:
    """Random outputs; every tensor is a leaf with a gradient."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return Outputs(
        text_VDBK=F.normalize(normal(2, domains, size, width), dim=-1).requires_grad_(),
        picture_VDBK=F.normalize(normal(2, domains, size, width), dim=-1).requires_grad_(),
        fused_DBK=normal(domains, size, width).requires_grad_(),
        logits_HQDBC=normal(heads, 4, domains, size, classes).requires_grad_(),
        text_logits_DBC=normal(domains, size, classes).requires_grad_(),
        picture_logits_DBC=normal(domains, size, classes).requires_grad_(),
    )


def leaves(made: Outputs) -> list[Tensor]:
    return [getattr(made, name) for name in Outputs.__dataclass_fields__]


def gradients(loss: Tensor, made: Outputs) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves(made), allow_unused=True, materialize_grads=True, retain_graph=True))


def batch(labels_DB: Tensor, pictures: Tensor | None = None, owner: Tensor | None = None, views: int = 2) -> Batch:
    """A batch on one worker; text is not filled in."""
    none = torch.zeros(0)
    return Batch(
        text=none,
        text_mask=None,
        pictures=none if pictures is None else pictures,
        picture_owner=owner,
        labels_DB=labels_DB,
        num_views=views,
        global_batch=labels_DB.shape[1],
    )


def labels(domains: int, size: int = 5, classes: int = 3) -> Tensor:
    return torch.tensor([[(3 * b + d) % classes for b in range(size)] for d in range(domains)])


def pictured(counts_VDB: Sequence[Sequence[Sequence[int]]], pixels: int = 12, seed: int = 0) -> Batch:
    """A batch with the given number of pictures per sample and view; a placeholder if there is none at all."""
    counts = torch.tensor(counts_VDB)
    rng = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(counts.numel()), counts.flatten())
    if not len(owner):
        owner = torch.tensor([counts.numel()])
    # Different brightness and contrast in each picture, so that a wrong grouping shows.
    pictures = torch.randn(len(owner), 3, pixels, pixels, generator=rng, dtype=torch.float64)
    pictures = (
        pictures * (1 + torch.arange(len(owner)) % 4)[:, None, None, None]
        + torch.arange(len(owner))[:, None, None, None] % 3
    )
    return batch(
        torch.zeros(counts.shape[1:], dtype=torch.long), pictures.requires_grad_(), owner, views=counts.shape[0]
    )
