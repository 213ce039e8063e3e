"""Gradients of the global batch from those of the workers' shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainers.m2can.collective import Collective
from trainers.m2can.discriminators import Discriminators
from trainers.m2can.network import M2CAN


def data_parallel(network: M2CAN, collective: Collective) -> M2CAN | DistributedDataParallel:
    """The network; with several workers in DistributedDataParallel, which averages their gradients."""
    if collective.world_size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


class GradientExchange:
    """Exchange of what DistributedDataParallel leaves out: the discriminators' gradients and values to be summed.

    Which discriminators take part changes with the epoch, which DistributedDataParallel does not allow.

    Args:
        factor: of a worker's share of the loss before its backward pass: the gradient of the global batch is the sum of
            the workers', and DistributedDataParallel divides it by their number.
    """

    def __init__(self, discriminators: Discriminators, collective: Collective) -> None:
        self.discriminators, self.collective = discriminators, collective
        self.factor = collective.world_size

    def __call__(self, others: list[Tensor]) -> list[Tensor]:
        """Average the discriminators' gradients over the workers, in place of this worker's.

        Args:
            others: what to sum in the same exchange.

        Returns:
            `others`, summed.
        """
        if self.collective.world_size == 1:
            return others
        moved = [p for p in self.discriminators.parameters() if p.grad is not None]
        summed = self.collective.sum_all([p.grad for p in moved if p.grad is not None] + others)
        if moved:
            torch._foreach_div_(summed[: len(moved)], self.collective.world_size)
        for p, gradient in zip(moved, summed[: len(moved)], strict=True):
            p.grad = gradient
        return summed[len(moved) :]
