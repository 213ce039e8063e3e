"""Texts in groups of similar length: the same features, fewer tokens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from trainers.m2can.encoders import MOST_GROUPS, Pooling, TextEncoder, group_by_length


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


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_features_and_gradients_are_those_of_one_call(pooling: Pooling) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = TextEncoder(BertModel(config), pooling).double()
    lengths = torch.from_numpy(drawn_lengths(40))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    tokens = torch.randint(1, 50, mask.shape) * mask
    assert len(group_by_length(lengths.numpy(), mask.shape[1])) > 1
    found = []
    for given in (None, lengths):
        features = encoder(tokens, mask, given)
        weight = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
        found.append((features, torch.autograd.grad((features * weight).sum(), encoder.parameters())))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-12)
    for ours, whole in zip(found[1][1], found[0][1]):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pooling", ["pooler", "cls"])
@pytest.mark.parametrize("known", [False, True])
def test_the_last_layer_of_the_first_token_is_that_of_all(pooling: str, known: bool) -> None:
    """Features and gradients are those of transformers' own layer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    plain = BertModel(config, add_pooling_layer=pooling == "pooler").double().train()
    encoder = TextEncoder(copy.deepcopy(plain), pooling)  # type: ignore[arg-type]
    lengths = torch.tensor([3, 11, 7, 40, 2])
    mask = (torch.arange(40) < lengths[:, None]).long()
    tokens = torch.randint(1, 50, (5, 40)) * mask
    out = plain(input_ids=tokens, attention_mask=mask)
    wanted = out.pooler_output if pooling == "pooler" else out.last_hidden_state[:, 0]
    found = encoder(tokens, mask, lengths if known else None)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for result in (found, wanted):
        result.square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in encoder.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-8, atol=1e-10)
