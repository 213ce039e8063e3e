"""Attention over packed texts in one call, as torch has it for GPUs only, written out for the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.m2can.encoders import packing


def _texts(ends: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each text its tokens [H, t, D], in float32."""
    lengths = ends.diff().tolist()
    yield from zip(*(x.float().transpose(0, 1).split(lengths, 1) for x in tensors), strict=True)


@torch.library.custom_op("m2can_tests::packed_attention", mutates_args=())
def packed_attention(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> Tensor:
    scale = q.shape[-1] ** -0.5
    found = [torch.softmax(scale * a @ b.mT, -1) @ c for a, b, c in _texts(ends, q, k, v)]
    return torch.cat(found, 1).transpose(0, 1).to(q.dtype).contiguous()


@torch.library.custom_op("m2can_tests::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale, found = q.shape[-1] ** -0.5, []
    for d, a, b, c in _texts(ends, g, q, k, v):
        p = torch.softmax(scale * a @ b.mT, -1)
        slope = d @ c.mT
        s = scale * p * (slope - (slope * p).sum(-1, keepdim=True))
        found.append((s @ b, s.mT @ a, p.mT @ d))
    dq, dk, dv = (torch.cat(parts, 1).transpose(0, 1).to(q.dtype).contiguous() for parts in zip(*found, strict=True))
    return dq, dk, dv


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return (*packed_attention_backward(g, *ctx.saved_tensors), None)


packed_attention.register_autograd(_backward, setup_context=_remember)


def use_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision takes the way that it takes on a GPU."""

    def attend(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, *_: Any, **__: Any) -> Tensor:
        return packed_attention(q, k, v, ends)

    half = (torch.bfloat16, torch.float16)
    monkeypatch.setattr(packing, "_has_kernel", lambda q, dropout: q.dtype in half and dropout == 0)
    monkeypatch.setattr(packing, "varlen_attn", attend)
