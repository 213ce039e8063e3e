"""BERT's encoder over packed texts: no padded token is computed, and of the last layer only what is read.

The tokens of all texts lie one after another in one matrix; everything but attention goes over it in one call. Attention
alone sees texts beside each other, in a few groups of similar length.

Suffixes: T tokens of all texts, N texts, n texts of a group, L their tokens, K features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_GROUPS = 6
_GROUP_COSTS = 128  # tokens: starting attention's kernels once more
_LENGTH_STEP = 8  # lengths are compared in this unit: fewer candidates
Pooling = Literal["pooler", "cls", "mean"]
_KNOWN = ("BertModel", "RobertaModel", "XLMRobertaModel")


def can_be_packed(model: nn.Module) -> bool:
    """Whether the model's layers are those that `encode_packed` computes."""
    config: Any = getattr(model, "config", None)
    return type(model).__name__ in _KNOWN and getattr(config, "_attn_implementation", "") == "sdpa"


def group_by_length(lengths_N: np.ndarray, longest: int) -> list[tuple[np.ndarray, int]]:
    """Cut texts, sorted by length, into groups that cost the fewest padded tokens.

    Args:
        lengths_N: tokens of each text.
        longest: tokens that the texts are padded to.

    Returns:
        of each group the texts' numbers and the length that they are cut to; shortest first.
    """
    steps_N = np.maximum(-(-lengths_N // _LENGTH_STEP), 1)
    order_N = np.argsort(steps_N, kind="stable")
    sizes, starts = np.unique(steps_N[order_N], return_index=True)
    counts = np.append(starts, len(order_N))
    # best[j]: the least cost of the texts of the first j lengths, and where their last group begins.
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for j in range(1, len(sizes) + 1):
        costs = (
            (best[i][0] + _GROUP_COSTS + float(counts[j] - counts[i]) * sizes[j - 1] * _LENGTH_STEP, [*best[i][1], j])
            for i in range(j)
            if len(best[i][1]) < MOST_GROUPS
        )
        best.append(min(costs, key=lambda found: found[0]))
    ends = best[-1][1]
    groups = zip([0, *ends[:-1]], ends, strict=True)
    return [(order_N[counts[i] : counts[j]], min(int(sizes[j - 1]) * _LENGTH_STEP, longest)) for i, j in groups]


class _Pad(torch.autograd.Function):
    """[t, K] → [n, L, K], zero where a text has ended; its gradient goes the other way by a gather too, not by adding."""

    @staticmethod
    def forward(ctx: Any, x_tK: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.spread(x_tK)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.collect(grad), None


class _Unpad(torch.autograd.Function):
    """[n, L, K] → [t, K]"""

    @staticmethod
    def forward(ctx: Any, x_nLK: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.collect(x_nLK)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.spread(grad), None


@dataclass(frozen=True)
class Group:
    """Texts whose attention is computed together.

    size: t, tokens of all of them. shape: (n, L).
    place: of each token in n·L. token: of each place, the token there or, behind a text's end, any. there: where a token
    is, bool [n, L]. All three None where the texts are of one length.
    """

    size: int
    shape: tuple[int, int]
    place: Tensor | None
    token: Tensor | None
    there: Tensor | None

    def pad(self, x_tK: Tensor) -> Tensor:
        """[t, K] → [n, L, K]"""
        return x_tK.unflatten(0, self.shape) if self.place is None else _Pad.apply(x_tK, self)

    def unpad(self, x_nLK: Tensor) -> Tensor:
        """[n, L, K] → [t, K]"""
        return x_nLK.flatten(0, 1) if self.place is None else _Unpad.apply(x_nLK, self)

    def spread(self, x_tK: Tensor) -> Tensor:
        """`pad`, without a graph."""
        assert self.token is not None and self.there is not None
        return x_tK.index_select(0, self.token).unflatten(0, self.shape) * self.there.unsqueeze(-1)

    def collect(self, x_nLK: Tensor) -> Tensor:
        """`unpad`, without a graph."""
        assert self.place is not None
        return x_nLK.flatten(0, 1).index_select(0, self.place)

    def mask(self) -> Tensor | None:
        """Of attention, [n, 1, 1, L]."""
        return None if self.there is None else self.there[:, None, None]


@dataclass(frozen=True)
class Packing:
    """Where the tokens of padded texts [N, longest] lie when they are packed, group after group; made by `pack`.

    take_T: of each packed token, its place in N·longest. position_T: in its text. first_N: the texts' first tokens, in
    the order of packing. back_N: the place in that order of each text. lengths_N1: in that order.
    """

    groups: list[Group]
    take_T: Tensor
    position_T: Tensor
    first_N: Tensor
    back_N: Tensor
    lengths_N1: Tensor

    @property
    def sizes(self) -> list[int]:
        return [group.size for group in self.groups]


def pack(lengths_N: np.ndarray, longest: int, device: torch.device) -> Packing:
    """Plan the packing in host memory and send it in one piece.

    Args:
        lengths_N: tokens of each text; an empty one counts as one token.
        longest: tokens that the texts are padded to.
    """
    parts = group_by_length(lengths_N, longest)
    order_N = np.concatenate([rows for rows, _ in parts])
    lengths = np.maximum(lengths_N, 1)[order_N]
    ends = lengths.cumsum()
    first = ends - lengths
    position = np.arange(ends[-1]) - np.repeat(first, lengths)
    arrays = [np.repeat(order_N * longest, lengths) + position, position, first, np.argsort(order_N), lengths]
    shapes: list[tuple[int, tuple[int, int], bool]] = []
    start = 0
    for rows, _ in parts:
        own = lengths[start : start + len(rows)]
        most, begins = int(own.max()), own.cumsum() - own
        ragged = bool((own != most).any())
        shapes.append((int(own.sum()), (len(rows), most), ragged))
        if ragged:
            columns = np.arange(most)
            there = columns < own[:, None]
            arrays += [np.flatnonzero(there), (begins[:, None] + np.minimum(columns, own[:, None] - 1)).ravel()]
            arrays += [there.ravel().astype(np.int64)]
        start += len(rows)
    sent = torch.from_numpy(np.concatenate(arrays).astype(np.int64))
    if device.type == "cuda":
        sent = sent.pin_memory()
    pieces = iter(sent.to(device, non_blocking=True).split([len(array) for array in arrays]))
    take_T, position_T, first_N, back_N, lengths_n = (next(pieces) for _ in range(5))
    groups = []
    for size, shape, ragged in shapes:
        place, token, there_n = (next(pieces), next(pieces), next(pieces)) if ragged else (None, None, None)
        groups.append(Group(size, shape, place, token, None if there_n is None else there_n.bool().view(shape)))
    return Packing(groups, take_T, position_T, first_N, back_N, lengths_n.unsqueeze(1))


def encode_packed(model: Any, tokens_NL: Tensor, lengths_N: np.ndarray, pooling: Pooling) -> Tensor:
    """Features of padded texts: those that `model` and the pooling give, to rounding.

    Args:
        model: one for which `can_be_packed`.
        tokens_NL: padded on the right.
        lengths_N: tokens of each text.
        pooling: see trainers.m2can.encoders.wrappers.TextEncoder.

    Returns:
        [N, K]
    """
    packing = pack(lengths_N, tokens_NL.shape[1], tokens_NL.device)
    padding = getattr(model.embeddings, "padding_idx", None)  # RoBERTa counts its positions from behind it
    position_T = packing.position_T + (0 if padding is None else padding + 1)
    tokens_1T = tokens_NL.flatten().index_select(0, packing.take_T)[None]
    hidden_TK = model.embeddings(input_ids=tokens_1T, position_ids=position_T[None]).squeeze(0)
    *before, last = model.encoder.layer
    for layer in before:
        hidden_TK = _run(layer, _layer, hidden_TK, packing)
    if pooling == "mean":
        hidden_TK = _run(last, _layer, hidden_TK, packing)
        parts = zip(packing.groups, hidden_TK.split(packing.sizes), strict=True)
        sums_NK = torch.cat([group.pad(part).sum(1) for group, part in parts])
        return (sums_NK / packing.lengths_N1.to(sums_NK.dtype)).index_select(0, packing.back_N)
    first_NK = _run(last, _first_tokens, hidden_TK, packing).index_select(0, packing.back_N)
    return model.pooler(first_NK.unsqueeze(1)) if pooling == "pooler" else first_NK


def _run(layer: Any, forward: Callable[..., Tensor], hidden_TK: Tensor, packing: Packing) -> Tensor:
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(forward, layer, hidden_TK, packing)
    return forward(layer, hidden_TK, packing)


def _layer(layer: Any, hidden_TK: Tensor, packing: Packing) -> Tensor:
    attention = layer.attention.self
    queries, keys, values = (
        linear(hidden_TK).split(packing.sizes) for linear in (attention.query, attention.key, attention.value)
    )
    found = [
        group.unpad(_attend(layer, group.pad(q), group.pad(k), group.pad(v), group.mask()))
        for group, q, k, v in zip(packing.groups, queries, keys, values, strict=True)
    ]
    return layer.feed_forward_chunk(layer.attention.output(torch.cat(found), hidden_TK))


def _first_tokens(layer: Any, hidden_TK: Tensor, packing: Packing) -> Tensor:
    """The layer where only its first tokens are read, [N, K]: the others are asked for keys and values alone."""
    attention = layer.attention.self
    first_NK = hidden_TK.index_select(0, packing.first_N)
    queries = attention.query(first_NK).split([group.shape[0] for group in packing.groups])
    keys, values = (linear(hidden_TK).split(packing.sizes) for linear in (attention.key, attention.value))
    found = [
        _attend(layer, q.unsqueeze(1), group.pad(k), group.pad(v), group.mask()).squeeze(1)
        for group, q, k, v in zip(packing.groups, queries, keys, values, strict=True)
    ]
    return layer.feed_forward_chunk(layer.attention.output(torch.cat(found), first_NK))


def _attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[n, queries, K], [n, L, K], [n, L, K] → [n, queries, K]"""
    attention = layer.attention.self

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    dropout = attention.dropout.p if layer.training else 0.0
    found = F.scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask, dropout_p=dropout)
    return found.transpose(1, 2).flatten(2)
