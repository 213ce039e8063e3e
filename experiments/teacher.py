"""The teacher: an exponential moving average of the network's weights that labels the target."""

from __future__ import annotations

import copy

import torch

from trainers.m2can.network import M2CAN


def make_teacher(network: M2CAN) -> M2CAN:
    """A copy in eval mode that takes no gradients."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: M2CAN, network: M2CAN, decay: float, step: int) -> None:
    """w_teacher ← α·w_teacher + (1 − α)·w, α = min(decay, (1 + step)/(10 + step)); buffers are copied.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.

    Args:
        step: number of optimisation steps so far: the average starts short.
    """
    rate = 1 - min(decay, (1 + step) / (10 + step))
    pairs = [(mine, p) for mine, p in zip(teacher.parameters(), network.parameters(), strict=True) if p.requires_grad]
    torch._foreach_lerp_([mine for mine, _ in pairs], [p for _, p in pairs], rate)
    for mine, buffer in zip(teacher.buffers(), network.buffers(), strict=True):
        mine.copy_(buffer)
