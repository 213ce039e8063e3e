"""Packed texts: the tokens of all texts without padding, and an attention that keeps the texts apart.

transformers' models call the attention function that is registered under their `attn_implementation` and hand it the
keyword arguments of `model(...)`. The one below takes a `Packing`; everything else in a model works on single tokens,
so packing needs no other change to it. See trainers.m2can.encoders.transformers_compat for the registration.

Tokens are passed as T texts of one token, [T, 1], so that a model's limit of positions is not one of the packed length.

Suffixes: T tokens of all texts, N texts, t tokens of a group, n its texts, L its longest text, H heads, D features of a
head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from trainers.m2can.batch import sent

MOST_GROUPS = 6
_GROUP_COST = 128  # what one more call of the attention kernels costs, in tokens
_LENGTH_STEP = 8  # lengths are compared in this unit, so that few cuts are tried


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
    # best[j]: the least cost of the texts of the first j lengths, and where their groups end.
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for j in range(1, len(sizes) + 1):
        costs = (
            (best[i][0] + _GROUP_COST + float(counts[j] - counts[i]) * sizes[j - 1] * _LENGTH_STEP, [*best[i][1], j])
            for i in range(j)
            if len(best[i][1]) < MOST_GROUPS
        )
        best.append(min(costs, key=lambda found: found[0]))
    ends = best[-1][1]
    groups = zip([0, *ends[:-1]], ends, strict=True)
    return [(order_N[counts[i] : counts[j]], min(int(sizes[j - 1]) * _LENGTH_STEP, longest)) for i, j in groups]


@dataclass(frozen=True)
class Group:
    """Texts of similar length, whose tokens lie together in the packed order.

    size: t. shape: (n, L). place_t: each token's place in the padded n·L; None where all texts are of one length.
    """

    size: int
    shape: tuple[int, int]
    place_t: Tensor | None

    def pad(self, x: Tensor) -> Tensor:
        """[t, …] → [n, L, …], zero behind a text's end."""
        if self.place_t is not None:
            places = self.shape[0] * self.shape[1]
            x = x.new_zeros(places, *x.shape[1:]).index_copy(0, self.place_t, x)
        return x.unflatten(0, self.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """[n, L, …] → [t, …]"""
        x = x.flatten(0, 1)
        return x if self.place_t is None else x.index_select(0, self.place_t)

    def mask(self, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
        """Which key a query sees, bool and to be broadcast to [n, H, L, L]; None: all keys, or those before it.

        Args:
            causal: a query sees no later key; then padding, which comes last, needs no mask.
            window: the largest distance of a key that is seen.
        """
        length = self.shape[1]
        near = None
        if window is not None and window < length - 1:
            position = torch.arange(length, device=device)
            distance = position[:, None] - position
            near = (distance.abs() <= window) & ((distance >= 0) | (not causal))
        if causal or self.place_t is None:
            return near
        there = torch.zeros(self.shape[0] * length, dtype=torch.bool, device=device).index_fill(0, self.place_t, True)
        there = there.view(self.shape[0], 1, 1, length)
        if near is None:
            return there
        # A padded query sees itself: a softmax over nothing is not a number.
        return there & near | torch.eye(length, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Packing:
    """Where the tokens of padded texts [N, longest] lie when they are packed, group after group; made by `pack`.

    take_T: of each packed token, its place in N·longest. position_T: its position in its text. text_T: its text, in the
    given order. first_N: where the
    texts begin, in the given order. back_N: of each text, its place in the packed order. lengths_N: in that order.
    ends_N1: cumulative lengths from 0, int32 [N + 1]. longest: tokens of the longest text.
    """

    groups: list[Group]
    take_T: Tensor
    position_T: Tensor
    text_T: Tensor
    first_N: Tensor
    back_N: Tensor
    lengths_N: Tensor
    ends_N1: Tensor
    longest: int

    def by_group(self, x_T: Tensor) -> Iterator[tuple[Group, Tensor]]:
        return zip(self.groups, x_T.split([group.size for group in self.groups]), strict=True)

    def mean(self, x_TK: Tensor) -> Tensor:
        """Mean over each text's tokens, [T, K] → [N, K]."""
        if _has_kernel(x_TK, 0.0):
            # One product, whatever the lengths; it adds in float32.
            mine_NT = torch.arange(len(self.lengths_N), device=x_TK.device)[:, None] == self.text_T
            sums_NK = mine_NT.to(x_TK.dtype) @ x_TK
            return sums_NK / self.lengths_N.index_select(0, self.back_N).to(sums_NK.dtype).unsqueeze(1)
        sums_NK = torch.cat([group.pad(x_tK).sum(1) for group, x_tK in self.by_group(x_TK)])
        return (sums_NK / self.lengths_N.to(sums_NK.dtype).unsqueeze(1)).index_select(0, self.back_N)


def pack(lengths_N: np.ndarray, longest: int, device: torch.device) -> Packing:
    """Plan the packing in host memory and send it in one piece.

    Args:
        lengths_N: tokens of each text; an empty one counts as one token.
        longest: tokens that the texts are padded to.
    """
    parts = group_by_length(lengths_N, longest)
    order_N = np.concatenate([rows for rows, _ in parts])
    back_N = np.argsort(order_N)
    lengths = np.maximum(lengths_N, 1)[order_N]
    ends = lengths.cumsum()
    first = ends - lengths
    position = np.arange(ends[-1]) - np.repeat(first, lengths)
    text = np.repeat(order_N, lengths)
    arrays = [text * longest + position, position, text, first[back_N], back_N, lengths]
    arrays += [np.append(0, ends)]
    shapes: list[tuple[int, tuple[int, int], bool]] = []
    for own in np.split(lengths, np.cumsum([len(rows) for rows, _ in parts])[:-1]):
        there = np.arange(own.max()) < own[:, None]
        shapes.append((int(own.sum()), (there.shape[0], there.shape[1]), not there.all()))
        if not there.all():
            arrays.append(np.flatnonzero(there))
    pieces = iter(sent(np.concatenate(arrays).astype(np.int64), device).split([len(array) for array in arrays]))
    take_T, position_T, text_T, first_N, back_N, lengths_N_, ends_N1 = (next(pieces) for _ in range(7))
    groups = [Group(size, shape, next(pieces) if ragged else None) for size, shape, ragged in shapes]
    return Packing(groups, take_T, position_T, text_T, first_N, back_N, lengths_N_, ends_N1.int(), int(lengths.max()))


@torch.compiler.disable  # it cuts by the batch's lengths; what is around it can be compiled
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention inside each text.

    Args:
        module: the layer that asks.
        query, key, value: [T, H, 1, D]
        scaling: factor of the scores; 1/√D where it is None.
        is_causal: as the layer itself says where it is None.
        sliding_window: as transformers counts it: a token sees `sliding_window − 1` tokens to either side.

    Returns:
        [T, 1, H, D]
    """
    q_THD, k_THD, v_THD = query.squeeze(2), key.squeeze(2), value.squeeze(2)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    window = None if sliding_window is None else sliding_window - 1
    attend = _in_one_call if _has_kernel(q_THD, dropout) else _by_group
    return attend(q_THD, k_THD, v_THD, packing, scaling, dropout, causal, window).unsqueeze(1)


def _has_kernel(query_THD: Tensor, dropout: float) -> bool:
    """Whether torch's attention over packed texts computes this: on GPUs, in half precision, without dropout."""
    half = query_THD.dtype in (torch.float16, torch.bfloat16)
    return query_THD.is_cuda and half and dropout == 0 and query_THD.shape[-1] % 8 == 0


def _in_one_call(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, scaling: float | None, _: float, causal: bool, window: int | None
) -> Tensor:
    ends, longest = packing.ends_N1, packing.longest
    if window is None and not causal:
        # A window of the longest text hides nothing, and torch stays with flash attention: without a window it takes
        # cuDNN's for texts of more than 128 tokens, which builds a plan for every new shape.
        window = longest
    before = -1 if window is None else window
    sides = (before, 0 if causal else before)
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=sides)  # type: ignore[return-value]


def _by_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    scaling: float | None,
    dropout: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    found = []
    for (group, q_t), (_, k_t), (_, v_t) in zip(*(packing.by_group(x) for x in (q, k, v)), strict=True):
        mask = group.mask(causal, window, q.device)
        q_nHLD, k_nHLD, v_nHLD = (group.pad(x).transpose(1, 2) for x in (q_t, k_t, v_t))
        y_nHLD = F.scaled_dot_product_attention(
            q_nHLD, k_nHLD, v_nHLD, mask, dropout, causal and mask is None, scale=scaling
        )
        found.append(group.unpad(y_nHLD.transpose(1, 2)))
    return torch.cat(found)
