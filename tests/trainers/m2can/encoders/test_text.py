"""Texts packed, or in groups of similar length: the same features, fewer tokens."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MobileBertConfig,
    MobileBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)  # fmt: skip

from trainers.m2can.encoders import packing as packing_module
from trainers.m2can.encoders.freezing import checkpoint_activations
from trainers.m2can.encoders.packing import MOST_GROUPS, group_by_length, pack, packed_attention
from trainers.m2can.encoders.text import Pooling, TextEncoder


def drawn_lengths(number: int) -> np.ndarray:
    return np.exp(np.log(25) + 0.6 * np.random.default_rng(0).standard_normal(number)).round().astype(int).clip(3, 200)


def test_every_text_is_in_one_group_that_holds_it() -> None:
    lengths = drawn_lengths(48)
    groups = group_by_length(lengths, int(lengths.max()))
    assert 2 <= len(groups) <= MOST_GROUPS
    assert sorted(np.concatenate([rows for rows, _ in groups]).tolist()) == list(range(48))
    assert all(lengths[rows].max() <= length <= lengths.max() for rows, length in groups)
    padded = sum(len(rows) * length for rows, length in groups)
    assert lengths.sum() <= padded < 0.7 * 48 * lengths.max()


@pytest.mark.parametrize("lengths", [np.array([7]), np.full(9, 12), np.array([0, 0, 3])])
def test_like_lengths_stay_together(lengths: np.ndarray) -> None:
    ((rows, length),) = group_by_length(lengths, max(1, int(lengths.max())))
    assert len(rows) == len(lengths) and length == max(1, lengths.max())


SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "max_position_embeddings": 220,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[type[nn.Module], Any]] = {
    "bert": (BertModel, BertConfig(**SIZES, **NO_DROPOUT)),
    "roberta": (RobertaModel, RobertaConfig(**SIZES, **NO_DROPOUT)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SIZES, **NO_DROPOUT)),
    "electra": (ElectraModel, ElectraConfig(**SIZES, **NO_DROPOUT, embedding_size=16)),
    "albert": (AlbertModel, AlbertConfig(**SIZES, **NO_DROPOUT, **SPECIAL, embedding_size=16)),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(
            vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64, dropout=0.0, attention_dropout=0.0
        ),
    ),
    # Attention over four tokens to either side in the second layer.
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(
            **SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2, local_attention=8, global_attn_every_n_layers=2
        ),
    ),
    "clip": (CLIPTextModel, CLIPTextConfig(**SIZES, **SPECIAL)),  # causal
    # Not packed: it adds a bias of its own to the scores.
    "mpnet": (MPNetModel, MPNetConfig(**(SIZES | {"pad_token_id": 1}), **NO_DROPOUT)),
    # Not packed: its embedding of a token reads the tokens beside it.
    "mobilebert": (
        MobileBertModel,
        MobileBertConfig(**SIZES, **NO_DROPOUT, embedding_size=16, intra_bottleneck_size=32),
    ),
}
PADDED = ("mpnet", "mobilebert")


def made_model(kind: str) -> Any:
    torch.manual_seed(0)
    model, config = FAMILIES[kind]
    return model(copy.deepcopy(config))


def made_texts(lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]).long()
    return torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask


def features_and_gradients(encoder: TextEncoder, lengths: np.ndarray, known: bool) -> tuple[torch.Tensor, ...]:
    tokens, mask = made_texts(lengths)
    features = encoder(tokens, mask, torch.from_numpy(lengths) if known else None)
    weight = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
    return features, *torch.autograd.grad((features * weight).sum(1).mean(), list(encoder.parameters()))


LENGTHS = [drawn_lengths(40), np.array([1, 200, 2, 1, 40, 3]), np.full(6, 9), np.array([1])]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["drawn", "very different", "alike", "one token"])
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [(kind, "mean") for kind in FAMILIES]
    + [(kind, "pooler") for kind in ("bert", "roberta", "albert", "mpnet")]
    + [("bert", "cls"), ("modernbert", "cls")],
)
def test_features_and_gradients_are_those_of_padded_texts(kind: str, pooling: Pooling, lengths: np.ndarray) -> None:
    """Without lengths the model gets the padded texts."""
    encoder = TextEncoder(made_model(kind), pooling).train()
    assert encoder.packs == (kind not in PADDED)
    single = [features_and_gradients(encoder, lengths, known) for known in (True, False)]
    for ours, whole in zip(*single, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    encoder.double()
    for ours, whole in zip(*(features_and_gradients(encoder, lengths, known) for known in (True, False)), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-11)


def test_no_padded_token_is_computed() -> None:
    lengths = drawn_lengths(40)
    encoder = TextEncoder(made_model("bert"), "pooler")
    seen: list[int] = []
    for name in ("encoder.layer.0.intermediate", "encoder.layer.1.intermediate", "encoder.layer.1.attention.self.key"):
        encoder.model.get_submodule(name).register_forward_pre_hook(
            lambda _, given: seen.append(given[0].numel() // 32)
        )
    tokens, mask = made_texts(lengths)
    encoder(tokens, mask, torch.from_numpy(lengths))
    assert len(seen) == 3
    assert set(seen) == {lengths.sum()}


def test_dropout_of_attention_is_drawn_for_packed_texts() -> None:
    model = BertModel(BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5))
    encoder = TextEncoder(model, "mean").train()
    tokens, mask = made_texts(np.array([5, 9, 2]))
    lengths = torch.tensor([5, 9, 2])
    torch.manual_seed(0)
    first, other = encoder(tokens, mask, lengths), encoder(tokens, mask, lengths)
    torch.manual_seed(0)
    assert torch.equal(encoder(tokens, mask, lengths), first)
    assert (first - other).abs().max() > 1e-3
    encoder.eval()
    assert torch.equal(encoder(tokens, mask, lengths), encoder(tokens, mask, lengths))


def test_a_model_that_is_compiled_as_a_whole_takes_padded_texts() -> None:
    encoder = TextEncoder(made_model("modernbert"), "mean").eval()
    tokens, mask = made_texts(np.array([5, 9, 2, 60]))
    packed = encoder(tokens, mask, torch.tensor([5, 9, 2, 60]))
    encoder.packs = False
    torch.testing.assert_close(encoder(tokens, mask, torch.tensor([5, 9, 2, 60])), packed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 3), (True, 3)])
def test_the_call_of_torchs_packed_attention(monkeypatch: pytest.MonkeyPatch, causal: bool, window: int | None) -> None:
    """On a GPU in half precision. Here a loop over the texts stands in for it, by its documentation."""

    def text_by_text(
        q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _: Tensor, longest: int, *__: int, **keys: Any
    ) -> Any:
        left, right = keys["window_size"]
        assert (left, right) != (-1, -1) and longest == 7 and ends.dtype == torch.int32
        found = []
        for q_, k_, v_ in zip(*(x.split(ends.diff().tolist()) for x in (q, k, v)), strict=True):
            distance = torch.arange(len(q_))[:, None] - torch.arange(len(q_))
            seen = ((distance <= left) | (left < 0)) & ((-distance <= right) | (right < 0))
            q_, k_, v_ = (x.transpose(0, 1) for x in (q_, k_, v_))
            y = nn.functional.scaled_dot_product_attention(q_, k_, v_, attn_mask=seen, scale=keys["scale"])
            found.append(y.transpose(0, 1))
        return torch.cat(found)

    packing = pack(np.array([7, 1, 3, 7]), 7, torch.device("cpu"))
    query, key, value = torch.randn(3, 18, 2, 1, 8)
    keys: dict[str, Any] = {"scaling": 0.3, "is_causal": causal, "sliding_window": window}
    wanted = packed_attention(nn.Identity(), query, key, value, packing, **keys)
    monkeypatch.setattr(packing_module, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(packing_module, "varlen_attn", text_by_text)
    found = packed_attention(nn.Identity(), query, key, value, packing, **keys)
    torch.testing.assert_close(found, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in PADDED])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu_is_near(kind: str, half: torch.dtype) -> None:
    encoder = TextEncoder(made_model(kind), "mean").cuda().eval()
    lengths = np.array([1, 200, 2, 1, 40, 3])
    tokens, mask = (x.cuda() for x in made_texts(lengths))
    wanted = encoder(tokens, mask)
    with torch.autocast("cuda", half):
        found = encoder(tokens, mask, torch.from_numpy(lengths))
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_an_empty_text_is_its_first_token() -> None:
    encoder = TextEncoder(made_model("bert"), "mean").eval()
    tokens, mask = made_texts(np.array([4, 7]))
    tokens[0], mask[0] = 0, 0
    given = encoder(tokens, mask, torch.tensor([0, 7])), encoder(tokens, mask, torch.tensor([1, 7]))
    assert given[0].isfinite().all() and torch.equal(*given)


def test_activations_are_computed_again_where_that_is_asked_for() -> None:
    lengths, model = drawn_lengths(12), made_model("bert")
    plain, frugal = (TextEncoder(copy.deepcopy(model), "mean").double().train() for _ in range(2))
    checkpoint_activations(frugal)
    calls: list[int] = []
    frugal.model.get_submodule("encoder.layer.0.intermediate").register_forward_hook(lambda *_: calls.append(1))
    found = [features_and_gradients(encoder, lengths, known=True) for encoder in (plain, frugal)]
    assert len(calls) == 2
    for ours, whole in zip(*found, strict=True):
        assert torch.equal(ours, whole)


def test_a_packing_holds_each_token_once() -> None:
    lengths = drawn_lengths(30)
    packing = pack(lengths, int(lengths.max()), torch.device("cpu"))
    wanted = np.flatnonzero(np.arange(lengths.max()) < lengths[:, None])
    assert sorted(packing.take_T.tolist()) == wanted.tolist()
    assert (packing.ends_N1[-1], packing.longest) == (lengths.sum(), lengths.max())
    assert sorted(packing.ends_N1.diff().tolist()) == sorted(lengths.tolist())
    x_TK = torch.randn(lengths.sum(), 3)
    for group, x_tK in packing.by_group(x_TK):
        assert len(x_tK) == group.size
        assert torch.equal(group.unpad(group.pad(x_tK)), x_tK)
