"""Text encoders: a transformers model with a pooling, without the cost of padding."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainers.m2can.encoders.half_weights import HalfWeights
from trainers.m2can.encoders.packing import group_by_length, pack
from trainers.m2can.encoders.transformers_compat import encode_packed, use_packed_attention

Pooling = Literal["pooler", "cls", "mean", "tower"]


class TextEncoder(nn.Module):
    """A Hugging Face encoder with a pooling.

    Args:
        model: a model of transformers.AutoModel's kind (`last_hidden_state`, and `pooler_output` for `pooler`).
        pooling: `pooler` (BERT's tanh of the first token's projection), `cls` (first token), `mean` (of real tokens),
            `tower` (what the text tower of a dual encoder gives as `pooler_output`).
        filled: length to which every text is filled up and token to fill with, for towers that read padding as text
            (SigLIP); None: padding is masked.

    Where the lengths of the texts are known, the cost follows their sum and not the longest, and the features are the
    same: models that go through transformers' attention interface compute no padded token (see packing) while `packs`
    is true; others take the texts in a few groups of similar length.

    Shape:
        tokens [N, L] padded on the right, mask [N, L], lengths [N] in host memory → [N, width]
    """

    def __init__(self, model: nn.Module, pooling: Pooling, filled: tuple[int, int] | None = None) -> None:
        super().__init__()
        if pooling not in ("pooler", "tower") and getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]  # parameters without a gradient would stop data parallelism
        if pooling == "pooler" and getattr(model, "pooler", None) is None:
            raise ValueError(f"pooling `pooler`: {type(model).__name__} has no pooler; use `cls` or `mean`")
        self.model = model
        self.pooling = pooling
        config: Any = model.config
        of_tower = getattr(config, "projection_size", None) if pooling == "tower" else None
        self.width = int(of_tower or config.hidden_size)
        self.filled = filled
        self.packs = pooling != "tower" and use_packed_attention(model)
        self.half_weights = HalfWeights(model)

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        if self.filled is not None:
            return self._filled(tokens_NL, mask_NL, *self.filled)
        if lengths_N is None:
            return self._padded(tokens_NL, mask_NL)
        if self.packs:
            return self._packed(tokens_NL, lengths_N.numpy())
        groups = group_by_length(lengths_N.numpy(), tokens_NL.shape[1])
        order_N = torch.from_numpy(np.concatenate([rows for rows, _ in groups]))
        back_N, order_N = order_N.argsort().to(tokens_NL.device), order_N.to(tokens_NL.device)
        features = [
            self._padded(tokens_NL[at, :length], mask_NL[at, :length])
            for at, (rows, length) in zip(order_N.split([len(rows) for rows, _ in groups]), groups, strict=True)
        ]
        return torch.cat(features)[back_N]

    def _packed(self, tokens_NL: Tensor, lengths_N: np.ndarray) -> Tensor:
        packing = pack(lengths_N, tokens_NL.shape[1], tokens_NL.device)
        out = encode_packed(self.model, tokens_NL, packing, self.half_weights.call)
        if self.pooling == "pooler":  # of every token, of which the texts' first ones are asked for
            return out.pooler_output.index_select(0, packing.first_N)
        hidden_TK = out.last_hidden_state.squeeze(1)
        return hidden_TK.index_select(0, packing.first_N) if self.pooling == "cls" else packing.mean(hidden_TK)

    def _filled(self, tokens_NL: Tensor, mask_NL: Tensor, length: int, pad_id: int) -> Tensor:
        tokens_NL = tokens_NL.where(mask_NL.bool(), pad_id)
        tokens_NL = nn.functional.pad(tokens_NL, (0, length - tokens_NL.shape[1]), value=pad_id)
        return self.half_weights.call(input_ids=tokens_NL).pooler_output

    def _padded(self, tokens_NL: Tensor, mask_NL: Tensor) -> Tensor:
        out = self.half_weights.call(input_ids=tokens_NL, attention_mask=mask_NL)
        if self.pooling in ("pooler", "tower"):
            return out.pooler_output
        hidden_NLK = out.last_hidden_state
        if self.pooling == "cls":
            return hidden_NLK[:, 0]
        weight_NL1 = mask_NL.unsqueeze(-1).to(hidden_NLK.dtype)
        return (hidden_NLK * weight_NL1).sum(1) / weight_NL1.sum(1).clamp_min(1)
