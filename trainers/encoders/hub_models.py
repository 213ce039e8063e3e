"""Models of transformers from a folder or the hub: a model alone, or a tower of a dual encoder. Nothing is executed.

A dual encoder is two towers whose features are trained to be alike: CLIP, SigLIP, ALIGN, BLIP.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets_manifest.errors import InputError, first_line
from trainers.encoders.weights import why_unreadable
from trainers.m2can.encoders.picture import VisionModel
from trainers.m2can.encoders.text import Pooling, TextEncoder

Part = Literal["text", "vision"]
_FIELDS: dict[Part, str] = {"text": "encoders.text", "vision": "encoders.picture"}
_INPUTS: dict[Part, str] = {"text": "input_ids", "vision": "pixel_values"}
_WANTED = "a local folder, or a hub name that is reachable or in the cache (HF_HUB_OFFLINE=1 looks only there)"
_FIRST_TOKEN = ("align_text_model", "chinese_clip_text_model")  # towers whose projection reads the first token


def read_config(name: str, part: Part, field: str | None = None) -> Any:
    """The configuration of a model. Raises InputError: none can be read, or it wants code of its own."""
    from transformers import AutoConfig

    try:
        with _quiet():
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no encoder could be read ({first_line(error)})",
            field=field or f"{_FIELDS[part]}.name",
            value=name,
            wanted=_WANTED if field else f"`tiny`, or {_WANTED}",
        ) from None


def require_dual(name: str) -> None:
    """Raises InputError: it is no dual encoder, or none can be read."""
    config = read_config(name, "text", "encoders.both")
    if not is_dual(config):
        raise InputError(
            f"is a model of the kind `{config.model_type}`, which is no dual encoder",
            field="encoders.both",
            value=name,
            wanted="CLIP, SigLIP or another dual encoder; or encoders.text.name and encoders.picture.name",
        )


def require_tower(name: str, part: Part) -> None:
    """Look at a model's configuration alone. Raises InputError: it reads something else, or none can be read."""
    from transformers import MODEL_MAPPING

    config = read_config(name, part)
    known = MODEL_MAPPING.get(type(config), None)
    if not is_dual(config) and isinstance(known, type):  # Funnel has two classes, of which its weights decide
        _require_inputs(known, part, name)


def is_dual(config: Any) -> bool:
    return hasattr(config, "text_config") and hasattr(config, "vision_config")


def tower_config(config: Any, part: Part) -> Any:
    """Of a dual encoder's tower; `config` itself where it is no dual encoder's."""
    return getattr(config, f"{part}_config") if is_dual(config) else config


def context_length(name: str) -> int | None:
    """The most tokens that a text encoder reads, as far as its configuration says it."""
    most: int | None = getattr(tower_config(read_config(name, "text"), "text"), "max_position_embeddings", None)
    return most


def picture_size(name: str) -> int | None:
    """The pixels of a picture's side that a vision model was trained with, as far as its configuration says it."""
    size = getattr(tower_config(read_config(name, "vision"), "vision"), "image_size", None)
    return size if isinstance(size, int) else None


def projection_width(config: Any) -> int | None:
    """The width in which a dual encoder compares texts and pictures; None if it is none."""
    width = getattr(config, "projection_dim", None) or getattr(config.text_config, "projection_size", None)
    return None if width is None else int(width)


def set_dropout(config: Any, share: float) -> None:
    """Of an encoder's layers and attention, as far as its architecture has any."""
    for name, value in config.to_dict().items():
        if "dropout" in name and "classifier" not in name and type(value) in (float, int):
            setattr(config, name, share)


def read_model(name: str, part: Part, dropout: float | None = None, *, reads_pooler: bool = False) -> Any:
    """A model with its weights.

    Args:
        dropout: of the part; None: as its configuration says.
        reads_pooler: whether its pooler must be among the weights; those of many models have none.

    Raises:
        InputError: they cannot be read, or are another architecture's.
    """
    from transformers import AutoModel

    config = read_config(name, part)
    if dropout is not None:
        set_dropout(tower_config(config, part), dropout)
    try:
        with _quiet():
            model, found = AutoModel.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below
            )
    except Exception as error:  # its readers raise many kinds, all of them mean the same here
        raise InputError(
            f"its weights could not be read ({why_unreadable(error)})",
            field=f"{_FIELDS[part]}.weights",
            value=name,
            wanted=f"`random`, a file, or {_WANTED}",
        ) from None
    others = sorted(found["mismatched_keys"], key=str)
    if others:
        shown = ", ".join(f"{key} {tuple(theirs)}, not {tuple(ours)}" for key, theirs, ours in others[:3])
        raise InputError(
            f"{len(others)} of its {len(model.state_dict())} tensors have other shapes than its configuration says ({shown})",
            field=f"{_FIELDS[part]}.name",
            value=name,
            wanted="the configuration and the weights of one model",
        )
    missing = sorted(key for key in found["missing_keys"] if reads_pooler or ".pooler." not in f".{key}")
    if missing:
        raise InputError(
            f"its weights lack {len(missing)} of the {len(model.state_dict())} tensors of a {type(model).__name__}",
            field=f"{_FIELDS[part]}.name",
            value=name,
            wanted=f"weights with {', '.join(missing[:3])}, …",
        )
    return model


def empty_model(settings: dict[str, Any]) -> nn.Module:
    """A model with random weights, of a configuration as a dictionary."""
    import transformers

    settings = dict(settings)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    if type(config) in transformers.MODEL_MAPPING:
        made: nn.Module = transformers.AutoModel.from_config(config, dtype=torch.float32)
    else:  # some towers are no models of AutoModel's; their classes are named alike
        made = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}Model")(config)
    return made


def tower_of(model: Any, part: Part, name: str) -> nn.Module:
    """A dual encoder's tower, or the model itself. Raises InputError: it reads something else."""
    tower: Any = getattr(model, f"{part}_model", None) if is_dual(model.config) else model
    _require_inputs(type(tower), part, name)
    encoder: nn.Module = tower
    return encoder


def _require_inputs(model: type, part: Part, name: str) -> None:
    """Raises InputError: the class of models reads something else."""
    if getattr(model, "main_input_name", None) != _INPUTS[part]:
        kind = {"text": "texts", "vision": "pictures"}[part]
        raise InputError(
            f"is a {model.__name__}, which is no encoder of {kind}",
            field=f"{_FIELDS[part]}.name",
            value=name,
            wanted=f"a transformers encoder of {kind}, or a dual encoder",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library's own report of what it read: what matters of it is told as an InputError."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def text_tower(model: nn.Module, section_pooling: Pooling, settings: dict[str, Any]) -> TextEncoder:
    """The encoder around a model of texts, with the pooling that its kind has."""
    kind = settings["model_type"]
    if not kind.endswith("_text_model"):
        return TextEncoder(model, section_pooling)
    if kind in _FIRST_TOKEN:
        return TextEncoder(model, "cls")
    # SigLIP's tower was trained on texts that are filled up, and reads the last place.
    length = settings["max_position_embeddings"] if kind.startswith("siglip") else None
    return TextEncoder(model, "tower", None if length is None else (length, settings["pad_token_id"]))


def vision_model(model: Any, name: str) -> tuple[VisionModel, int]:
    """The model as pictures → features, and the features' width. Parameters that no feature depends on are frozen.

    Raises:
        InputError: it does not take a batch of pictures alone.
    """
    size = getattr(model.config, "image_size", None) or 224
    size = size if isinstance(size, int) else size[0]
    interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    wrapped = VisionModel(model, size, interpolates=interpolates).eval()
    try:
        with torch.enable_grad():
            features = wrapped(torch.zeros(1, 3, size, size))
            features.sum().backward()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"does not take a batch of pictures ({first_line(error)})",
            field="encoders.picture.name",
            value=name,
            wanted="a vision model that reads pixels alone",
        ) from None
    for parameter in wrapped.parameters():  # without a gradient they would stop data parallelism
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return wrapped.train(), int(features.shape[1])


@torch.no_grad()
def start_projections(model: Any, text: nn.Linear, picture: nn.Linear) -> None:
    """Give two projections the weights of a dual encoder's own; one that it does not have is the identity."""
    for ours, theirs in (
        (text, getattr(model, "text_projection", None)),
        (picture, getattr(model, "visual_projection", None)),
    ):
        ours.bias.zero_()
        if theirs is None:
            nn.init.eye_(ours.weight)
        else:
            ours.weight.copy_(theirs.weight)
            if theirs.bias is not None:
                ours.bias.copy_(theirs.bias)


def similarity_scale(model: Any) -> float:
    """What a dual encoder multiplies similarities by before the softmax over texts."""
    if hasattr(model, "logit_scale"):
        return float(model.logit_scale.detach().exp())
    return 1 / float(model.temperature.detach()) if hasattr(model, "temperature") else 100.0  # ALIGN; CLIP's


@torch.no_grad()
def require_equal(model: Any, texts: TextEncoder, pictures: Any, projections: tuple[nn.Module, nn.Module]) -> None:
    """Compare features of a text and a picture with the dual encoder's own.

    Raises:
        InputError: they differ, because its towers are put together in a way that is not known here.
    """
    length = texts.filled[0] if texts.filled is not None else 4
    tokens_1L = torch.arange(length)[None] % model.config.text_config.vocab_size
    size = pictures.image_size
    picture_1 = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    trained = [module for module in (model, texts, pictures) if module.training]
    for module in trained:
        module.eval()
    ones_1L = torch.ones_like(tokens_1L)
    asked = {} if texts.filled is not None else {"attention_mask": ones_1L}
    pairs: list[tuple[Tensor, Any]] = [
        (projections[0](texts(tokens_1L, ones_1L)), model.get_text_features(input_ids=tokens_1L, **asked)),
        (projections[1](pictures(picture_1)), model.get_image_features(pixel_values=picture_1)),
    ]
    for module in trained:
        module.train()
    for ours, theirs in pairs:
        if not torch.allclose(ours, theirs.pooler_output.flatten(1), rtol=1e-3, atol=1e-4):
            raise InputError(
                f"how a {type(model).__name__} joins its towers is not known here",
                field="encoders.both",
                wanted="CLIP, SigLIP or another dual encoder; or encoders.text.name and encoders.picture.name",
            )
