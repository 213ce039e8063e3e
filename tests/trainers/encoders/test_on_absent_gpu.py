"""Encoders of each family compute on a GPU, as far as it can be seen without one, in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from datasets_manifest.stream.encode import HostBatch
from tests.trainers.absent_gpu import GPU, gradients_from_nowhere, move_there, moved_there, pretend_there_is_one
from tests.trainers.encoders.hub_folders import WRITERS
from trainers.compute.device_batches import PictureForm, to_batch
from trainers.encoders import encoders, hub_models
from trainers.m2can.batch import Batch
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.recipe.data_sections import PictureEncoderSection

LENGTHS = np.array([9, 2, 5, 2])
SIZES = {"vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
DISTILBERT = transformers.DistilBertConfig(vocab_size=12, dim=32, n_layers=2, n_heads=2, hidden_dim=8)
MODERNBERT = transformers.ModernBertConfig(
    **SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
)


def batch_of(pixels: int) -> Batch:
    """Four rows in host memory, as a GPU in half precision takes them."""
    mask = (np.arange(LENGTHS.max()) < LENGTHS[:, None]).astype(np.int64)
    rows = np.arange(len(LENGTHS))
    pictures = np.zeros((len(rows), pixels, pixels, 3), np.uint8)
    host = HostBatch(tokens=3 * mask, mask=mask, pictures=pictures, owner=rows, rows=rows, bad=[])
    form = PictureForm(torch.bfloat16)
    return to_batch(host, np.zeros((1, 4)), device=torch.device("cpu"), dtype=torch.float32, pictures=form)


def width_there(monkeypatch: pytest.MonkeyPatch, encoder: TextEncoder | PictureEncoder, pixels: int = 8) -> int:
    """Of the features that it computes in training."""
    encoder.train()
    pretend_there_is_one(monkeypatch)
    batch = moved_there(batch_of(pixels))
    move_there(encoder)
    with gradients_from_nowhere(monkeypatch), torch.autocast("cuda", torch.bfloat16):
        if isinstance(encoder, TextEncoder):
            features = encoder(batch.text, batch.text_mask, batch.text_lengths)
        else:
            features = encoder(batch.pictures, batch)
    assert features.device == GPU
    assert len(features) == len(LENGTHS)
    return features.shape[1]


@pytest.mark.parametrize(
    ("model", "packs"),
    [
        (transformers.BertModel(transformers.BertConfig(**SIZES)), True),  # with dropout in its attention
        (transformers.DistilBertModel(DISTILBERT), True),
        (transformers.RobertaModel(transformers.RobertaConfig(**SIZES)), True),
        (transformers.ModernBertModel(MODERNBERT), True),
        (transformers.MPNetModel(transformers.MPNetConfig(**SIZES)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_texts(monkeypatch: pytest.MonkeyPatch, model: nn.Module, packs: bool) -> None:
    encoder = TextEncoder(model, "mean")
    assert encoder.packs == packs
    assert width_there(monkeypatch, encoder) == 32


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_text_towers(monkeypatch: pytest.MonkeyPatch, family: str, tmp_path: Path) -> None:
    model = WRITERS[family](tmp_path)
    config = hub_models.tower_config(hub_models.read_config(str(tmp_path), "text"), "text").to_dict()
    encoder = hub_models.text_tower(hub_models.tower_of(model, "text", str(tmp_path)), "tower", config)
    assert width_there(monkeypatch, encoder) == encoder.width


# SigLIP's picture head is a torch function that asks for the driver itself.
@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("clip", 224),
        ("vit", 224),
        ("dinov2", 224),
        ("convnext", 224),
        ("mobilevit", 256),
        ("timm:vit_tiny_patch16_224", 224),
        ("timm:convnext_atto", 64),
        ("timm:efficientnet_b0", 64),
    ],
)
def test_pictures(monkeypatch: pytest.MonkeyPatch, name: str, pixels: int, tmp_path: Path) -> None:
    if name in WRITERS:
        WRITERS[name](tmp_path)
        section = PictureEncoderSection(name=f"hf:{tmp_path}", weights="pretrained")
    else:
        section = PictureEncoderSection(name=name, weights="random")
    encoder = encoders.build_picture_encoder(section, load_weights=True, config=encoders.picture_config(section))
    assert width_there(monkeypatch, encoder, pixels) == encoder.width
