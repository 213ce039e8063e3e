"""What we use of transformers beyond its documented models, in one place; tested for each release that is allowed.

transformers is imported only here and only when it is needed: an encoder of cached features does without it.

Private or undocumented: `_supports_attention_backend`, `embeddings.padding_idx`, the names of the layer lists, and that
a model hands unknown keyword arguments of `forward` down to its attention function.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.m2can.encoders.packing import Packing, pack, packed_attention

ATTENTION = "m2can_packed"  # our name among transformers' attention functions
_LAYERS = ("encoder.layer", "transformer.layer", "encoder.layers", "layers")  # BERT, DistilBERT, CLIP, ModernBERT


def use_packed_attention(model: nn.Module) -> bool:
    """Put our attention function under `model` if packed texts then come out as padded ones do.

    A model that does not go through transformers' attention interface, or adds something of its own to the scores, is
    left as it was.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return False
    _register()
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    if next(model.parameters()).is_meta or _packs_exactly(model):
        return True
    model.set_attn_implementation(before)  # type: ignore[operator]
    return False


def encode_packed(model: Any, tokens_NL: Tensor, packing: Packing, call: Callable[..., Any] | None = None) -> Any:
    """The model's output for packed texts, each token as a text of its own: `last_hidden_state` is [T, 1, K].

    Args:
        call: calls the model in place of the model itself.
    """
    tokens_T1 = tokens_NL.flatten().index_select(0, packing.take_T).unsqueeze(1)
    positions_T1 = packing.position_T.unsqueeze(1) + _first_position(model)
    return (call or model)(input_ids=tokens_T1, position_ids=positions_T1, packing=packing)


def text_layers(model: nn.Module) -> list[nn.Module] | None:
    """Embeddings and layers, input first; None if the architecture is not known here."""
    for name in _LAYERS:
        try:
            return [model.embeddings, *operator.attrgetter(name)(model)]
        except AttributeError:
            continue
    return None


def _first_position(model: Any) -> int:
    """RoBERTa counts positions from behind the padding's index."""
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    padded_attention, padded_mask = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packing: Packing | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if packing is None:
            return padded_attention(module, query, key, value, attention_mask, **options)
        known = {name: options.get(name) for name in ("scaling", "is_causal", "sliding_window")}
        return packed_attention(module, query, key, value, packing, dropout=options.get("dropout", 0.0), **known), None

    def mask(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
        return None if attention_mask is None else padded_mask(attention_mask=attention_mask, **options)

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, mask)


@torch.no_grad()
def _packs_exactly(model: Any) -> bool:
    """Compare two short texts, packed and padded."""
    training, device = model.training, next(model.parameters()).device
    padding = getattr(model.config, "pad_token_id", None)
    ids = [n for n in range(min(8, model.config.vocab_size)) if n != padding]
    lengths = [3, 2]
    mask_NL = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
    tokens_NL = torch.tensor([ids[:3], ids[3:6]], device=device)
    tokens_NL = tokens_NL.where(mask_NL.bool(), padding or 0)
    packing = pack(np.array(lengths), 3, device)
    model.eval()
    try:
        padded = model(input_ids=tokens_NL, attention_mask=mask_NL).last_hidden_state
        packed = encode_packed(model, tokens_NL, packing).last_hidden_state.squeeze(1)
    except Exception:  # a model that is not known here may fail in any way; it stays padded then
        return False
    finally:
        model.train(training)
    return torch.allclose(packed, padded.flatten(0, 1)[packing.take_T], rtol=1e-3, atol=1e-4)
