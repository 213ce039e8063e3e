"""Small random models of each family, saved in their library's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

_WORDS = [
    "[UNK]",
    "<pad>",
    "<start>",
    "<end>",
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "dog",
    "sea",
    "hill",
    "town",
    "good",
    "bad",
]
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT = _TOWER | {"vocab_size": len(_WORDS), "max_position_embeddings": 12, "pad_token_id": 1}
_VISION = _TOWER | {"image_size": 224, "patch_size": 32}


def write_tokenizer(folder: Path, *, start: bool = True, words: Sequence[str] = _WORDS, **names: Any) -> None:
    """Whole words; `<start> … <end>` around a text, as CLIP has it, or only the end, as SigLIP has it."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<start> $A <end>" if start else "$A <end>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "<pad>", "eos_token": "<end>"} | names
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_clip(folder: Path, more_words: Sequence[str] = ()) -> transformers.CLIPModel:
    words = [*_WORDS, *more_words]
    text, vision = _TEXT | {"vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3}, dict(_VISION)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    write_tokenizer(folder, words=words, bos_token="<start>")
    return _saved(transformers.CLIPModel(config), folder)


def write_siglip(folder: Path) -> transformers.SiglipModel:
    config = transformers.SiglipConfig(text_config=_TEXT | {"projection_size": 32}, vision_config=dict(_VISION))
    transformers.SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    write_tokenizer(folder, start=False)
    return _saved(transformers.SiglipModel(config), folder)


def write_vit(folder: Path) -> transformers.ViTModel:
    transformers.ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return _saved(transformers.ViTModel(transformers.ViTConfig(**_VISION), add_pooling_layer=False), folder)


def write_dinov2(folder: Path) -> transformers.Dinov2Model:
    transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(folder)
    sizes = {
        key: _VISION[key]
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    }
    return _saved(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)), folder)


def write_convnext(folder: Path) -> transformers.ConvNextModel:
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(folder)
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return _saved(transformers.ConvNextModel(config), folder)


def write_mobilevit(folder: Path) -> transformers.MobileViTModel:
    """Takes BGR, not normalised."""
    size = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
    transformers.MobileViTImageProcessor(**size).save_pretrained(folder)
    config = transformers.MobileViTConfig(
        image_size=256, hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 12, 16, 20, 24], num_attention_heads=2
    )
    return _saved(transformers.MobileViTModel(config), folder)


WRITERS = {
    "clip": write_clip, "siglip": write_siglip, "vit": write_vit, "dinov2": write_dinov2, "convnext": write_convnext,
    "mobilevit": write_mobilevit,
}  # fmt: skip


def _saved(model: Any, folder: Path) -> Any:
    """With weights that make features of different pictures differ: those of a fresh model are all alike."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15 if isinstance(model, transformers.MobileViTModel) else 0.08)
    model.save_pretrained(folder)
    return model.eval()
