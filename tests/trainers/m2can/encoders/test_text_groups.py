"""Texts packed, or in groups of similar length: the same features, fewer tokens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from trainers.m2can.encoders.packed_text import MOST_GROUPS, Pooling, group_by_length, pack
from trainers.m2can.encoders.wrappers import TextEncoder, checkpoint_activations


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
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def made_model(kind: str, pooling: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "distilbert":
        return DistilBertModel(
            DistilBertConfig(
                vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64, dropout=0.0, attention_dropout=0.0
            )
        )
    if kind == "roberta":
        config = RobertaConfig(**SIZES, pad_token_id=0, max_position_embeddings=220)
        return RobertaModel(config, add_pooling_layer=pooling == "pooler")
    return BertModel(BertConfig(**SIZES), add_pooling_layer=pooling == "pooler")


def made_texts(lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]).long()
    return torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(0)) * mask, mask


def features_and_gradients(encoder: TextEncoder, lengths: np.ndarray, known: bool) -> tuple[torch.Tensor, ...]:
    tokens, mask = made_texts(lengths)
    features = encoder(tokens, mask, torch.from_numpy(lengths) if known else None)
    weight = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
    return features, *torch.autograd.grad((features * weight).sum(), list(encoder.parameters()))


@pytest.mark.parametrize("lengths", [drawn_lengths(40), np.array([3, 11, 7, 40, 2]), np.full(6, 9), np.array([5])])
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("bert", "pooler"), ("bert", "cls"), ("bert", "mean"), ("roberta", "mean"), ("roberta", "pooler"),
     ("distilbert", "mean")],
)  # fmt: skip
def test_features_and_gradients_are_those_of_padded_texts(kind: str, pooling: Pooling, lengths: np.ndarray) -> None:
    """Without lengths transformers' own forward pass runs."""
    encoder = TextEncoder(made_model(kind, pooling), pooling).double().train()
    assert encoder.packs == (kind != "distilbert")
    for ours, whole in zip(*(features_and_gradients(encoder, lengths, known) for known in (True, False)), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-11)


def test_no_padded_token_is_computed_and_of_the_last_layer_only_what_is_read() -> None:
    lengths = drawn_lengths(40)
    encoder = TextEncoder(made_model("bert", "pooler"), "pooler")
    seen: list[tuple[str, int]] = []
    for name in ("encoder.layer.0.intermediate", "encoder.layer.1.intermediate", "encoder.layer.1.attention.self.key"):
        module = encoder.model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, given, name=name: seen.append((name, len(given[0]))))
    tokens, mask = made_texts(lengths)
    encoder(tokens, mask, torch.from_numpy(lengths))
    assert [number for _, number in seen] == [lengths.sum(), lengths.sum(), 40]


def test_an_empty_text_is_its_first_token() -> None:
    encoder = TextEncoder(made_model("bert", "mean"), "mean").eval()
    tokens, mask = made_texts(np.array([4, 7]))
    tokens[0], mask[0] = 0, 0
    given = encoder(tokens, mask, torch.tensor([0, 7])), encoder(tokens, mask, torch.tensor([1, 7]))
    assert given[0].isfinite().all() and torch.equal(*given)


def test_activations_are_computed_again_where_that_is_asked_for() -> None:
    lengths, model = drawn_lengths(12), made_model("bert", "mean")
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
    assert sum(packing.sizes) == lengths.sum()
    for group, size in zip(packing.groups, packing.sizes, strict=True):
        x_tK = torch.randn(size, 3)
        assert torch.equal(group.unpad(group.pad(x_tK)), x_tK)
