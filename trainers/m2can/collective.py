"""Sum and gather over the workers, both with gradients. On one worker both are the identity.

The loss is the sum of the workers' shares, so the gradient of a sum over the workers is the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def slice_sizes(total: int, world_size: int) -> list[int]:
    """Sizes of the slices in which `total` rows go to the workers (the rule of numpy.array_split)."""
    base, extra = divmod(total, world_size)
    return [base + (rank < extra) for rank in range(world_size)]


class Collective:
    """One worker: nothing to exchange."""

    rank = 0
    world_size = 1

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over the workers, with gradient."""
        return x

    def sum_(self, x: Tensor) -> Tensor:
        """Sum of `x` over the workers, in place, without gradient."""
        return x

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum of each tensor over the workers, without gradient, in one exchange for each type of theirs."""
        return list(tensors)

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        """All workers' rows of dimension 1, in rank order, with gradient: [D, b, K] → [D, global_batch, K]."""
        return x_DBK


class DistributedCollective(Collective):
    """The workers of torch.distributed's default process group (gloo or NCCL)."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    @torch.compiler.disable
    def sum(self, x: Tensor) -> Tensor:
        return _AllReduceSum.apply(x, self)

    def sum_(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        summed = list(tensors)
        for dtype in dict.fromkeys(x.dtype for x in tensors):
            places = [i for i, x in enumerate(tensors) if x.dtype == dtype]
            flat = self.sum_(torch.cat([tensors[i].flatten() for i in places]))
            for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
                summed[i] = part.view_as(tensors[i])
        return summed

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        return _GatherRows.apply(x_DBK, slice_sizes(global_batch, self.world_size), self)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: DistributedCollective) -> Tensor:
        ctx.collective = collective
        return collective.sum_(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.collective.sum_(grad.clone(memory_format=torch.contiguous_format)), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_DBK: Tensor, sizes: list[int], collective: DistributedCollective) -> Tensor:
        ctx.sizes, ctx.collective = sizes, collective
        # Slices differ by at most one row: each is padded to the longest, because a gather wants equal shapes.
        padded = F.pad(x_DBK, (0, 0, 0, max(sizes) - x_DBK.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        start, size = sum(ctx.sizes[: ctx.collective.rank]), ctx.sizes[ctx.collective.rank]
        summed = ctx.collective.sum_(grad.clone(memory_format=torch.contiguous_format))
        return summed[:, start : start + size], None, None
