"""What the method needs from other workers: a sum and a gather, both with gradients. On one worker both are the identity.

Differentiation counts every rank's share once: the gradient of a sum over ranks is the sum of the ranks' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainers.m2can.near import open_near

# Workers. Each reads the gradients of all of them; with more, the rings of torch.distributed move less.
NEAR_GRADIENTS = 4


def slice_sizes(total: int, world_size: int) -> list[int]:
    """Sizes of the slices in which `total` rows go to the workers (the rule of numpy.array_split)."""
    base, extra = divmod(total, world_size)
    return [base + (rank < extra) for rank in range(world_size)]


class Collective:
    """One worker: nothing to exchange."""

    rank = 0
    world_size = 1
    sums_gradients = True  # of a whole network; otherwise something like DistributedDataParallel does it better

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over the workers, with gradient."""
        return x

    def sum_(self, x: Tensor) -> Tensor:
        """Sum of `x` over the workers, in place, without gradient."""
        return x

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum of each tensor over the workers, without gradient, in one exchange for each type of theirs.

        The tensors are used up: what is not contiguous is overwritten, to keep its order in memory.
        """
        return list(tensors)

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        """All workers' rows of dimension 1, in rank order, with gradient: [D, b, K] → [D, global_batch, K]."""
        return x_DBK


class DistributedCollective(Collective):
    """The workers of a torch.distributed process group (gloo or NCCL). All of them make it together.

    Args:
        timeout_s: how long an exchange through shared memory waits for another worker.
        near: whether small tensors go through shared memory where all workers are on one machine (m2can/near.py).
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout_s: float = 1800.0, near: bool = True) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.near = open_near(group, timeout_s) if near else None
        self.sums_gradients = self.near is not None and self.world_size <= NEAR_GRADIENTS

    def sum(self, x: Tensor) -> Tensor:
        return _AllReduceSum.apply(x, self)

    def sum_(self, x: Tensor) -> Tensor:
        if self.near is not None and self.near.fits(x):
            return x.copy_(self.near.sum(x))
        dist.all_reduce(x, group=self.group)
        return x

    def summed(self, x: Tensor) -> Tensor:
        """Sum of `x` over the workers, a new tensor, without gradient."""
        if self.near is not None and self.near.fits(x):
            return self.near.sum(x)
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=self.group)
        return x

    def sum_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        found = list(tensors)
        for dtype in dict.fromkeys(x.dtype for x in tensors):
            places = [i for i, x in enumerate(tensors) if x.dtype == dtype]
            for i, summed in zip(places, self._sum_alike([tensors[i] for i in places]), strict=True):
                found[i] = summed
        return found

    def _sum_alike(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.near is not None and all(x.device.type == "cpu" for x in tensors):
            flat = self.near.sum_flat(tensors)
        else:
            flat = torch.cat([x.flatten() for x in tensors])
            dist.all_reduce(flat, group=self.group)
        parts = (part.view_as(x) for x, part in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True))
        return [part if x.is_contiguous() else x.copy_(part) for x, part in zip(tensors, parts, strict=True)]

    def gather(self, x_DBK: Tensor, global_batch: int) -> Tensor:
        return _GatherRows.apply(x_DBK, slice_sizes(global_batch, self.world_size), self)

    def gather_equal(self, x: Tensor) -> list[Tensor]:
        """Every worker's `x`, of one shape, without gradient; to be read before the next exchange."""
        if self.near is not None and self.near.fits(x):
            return self.near.gather(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return parts


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, collective: DistributedCollective) -> Tensor:
        ctx.collective = collective
        return collective.summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.collective.summed(grad), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_DBK: Tensor, sizes: list[int], collective: DistributedCollective) -> Tensor:
        ctx.sizes, ctx.collective = sizes, collective
        # Slices differ by at most one row: each is padded to the longest, because a gather wants equal shapes.
        parts = collective.gather_equal(F.pad(x_DBK, (0, 0, 0, max(sizes) - x_DBK.shape[1])))
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        start, size = sum(ctx.sizes[: ctx.collective.rank]), ctx.sizes[ctx.collective.rank]
        return ctx.collective.summed(grad)[:, start : start + size], None, None
