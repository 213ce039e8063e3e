"""What we use of transformers beyond its documented models is there in the installed release."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from trainers.m2can.encoders import transformers_compat as compat
from trainers.m2can.encoders.packing import Packing

ADAPT = f"transformers {transformers.__version__} has changed: adapt trainers/m2can/encoders/transformers_compat.py, "
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
DISTILBERT = DistilBertConfig(vocab_size=20, dim=16, n_layers=2, n_heads=2, hidden_dim=8)
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_the_release_is_one_that_was_tested() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    (wanted,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "transformers"]
    assert wanted.specifier.contains(transformers.__version__), (
        f"transformers {transformers.__version__} is not among {wanted.specifier} of pyproject.toml: run these tests, "
        "then move the bound"
    )


def test_attention_and_mask_functions_can_be_registered() -> None:
    for name in ("AttentionInterface", "AttentionMaskInterface"):
        interface: Any = getattr(transformers, name, None)
        assert interface is not None and hasattr(interface, "register"), ADAPT + f"there is no {name}.register"
        assert "sdpa" in interface(), ADAPT + f"{name} has no `sdpa`, which padded texts take"


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (BertModel(BertConfig(**SIZES)), True),
        (DistilBertModel(DISTILBERT), True),
        (ModernBertModel(ModernBertConfig(**SIZES, **SPECIAL, cls_token_id=1, sep_token_id=2)), True),
        (CLIPTextModel(CLIPTextConfig(**SIZES, **SPECIAL)), True),
        (MPNetModel(MPNetConfig(**SIZES)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_go_through_the_interface(model: nn.Module, known: bool) -> None:
    assert hasattr(model, "_supports_attention_backend"), ADAPT + "`_supports_attention_backend` is gone"
    before = model.config._attn_implementation  # type: ignore[union-attr]
    assert compat.use_packed_attention(model) == known, (
        ADAPT + f"{type(model).__name__}: packs or does not, unlike before"
    )
    after = model.config._attn_implementation  # type: ignore[union-attr]
    assert after == (compat.ATTENTION if known else before)
    layers = compat.text_layers(model)
    assert layers is not None and len(layers) == 3, ADAPT + f"the layers of {type(model).__name__} have another name"


def test_a_model_that_drops_the_packing_stays_padded() -> None:
    class Drops(BertModel):
        def forward(self, *args: Any, packing: Packing | None = None, **keys: Any) -> Any:
            return super().forward(*args, **keys)

    model = Drops(BertConfig(**SIZES))
    assert not compat.use_packed_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert model.training == Drops(BertConfig(**SIZES)).training


def test_a_model_without_memory_is_not_asked() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig(**SIZES))
    assert compat.use_packed_attention(model)


def test_roberta_counts_positions_behind_the_padding() -> None:
    model = RobertaModel(RobertaConfig(**SIZES, pad_token_id=3))
    assert getattr(model.embeddings, "padding_idx", None) == 3, ADAPT + "`embeddings.padding_idx` is gone"
    assert "position_ids" in inspect.signature(model.forward).parameters
