"""What the method needs from other workers: a sum and a gather, both with gradients. On one worker both are the identity.

Differentiation counts every rank's share once: the gradient of a sum over ranks is the sum of the ranks' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
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

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        """All workers' rows of dimension 1, in rank order, with gradient: [D, b, K] → [D, global_batch, K]."""
        return x_DBK


class DistributedCollective(Collective):
    """The workers of a torch.distributed process group (gloo or NCCL)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def sum(self, x: Tensor) -> Tensor:
        return _AllReduceSum.apply(x, self.group)

    def sum_(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        return _GatherRows.apply(x_DBK, slice_sizes(global_batch, self.world_size), self.rank, self.group)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_DBK: Tensor, sizes: list[int], rank: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.sizes, ctx.rank, ctx.group = sizes, rank, group
        domains, _, width = x_DBK.shape
        # Slices differ by at most one row: each is padded to the longest, because all_gather wants equal shapes.
        padded = x_DBK.new_zeros(domains, max(sizes), width)
        padded[:, : sizes[rank]] = x_DBK
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        start = sum(ctx.sizes[: ctx.rank])
        return total[:, start : start + ctx.sizes[ctx.rank]], None, None, None
