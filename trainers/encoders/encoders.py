"""Text and picture encoders by their names in a recipe: transformers, torchvision, timm, and tiny ones."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from torch import nn

from datasets_manifest.errors import InputError, first_line, nearest
from trainers.encoders import hub_models
from trainers.encoders.adapters import add_adapters
from trainers.encoders.weights import FILES, HEADS, is_weights_file, load_weights_file
from trainers.m2can.encoders.freezing import TooFewBlocks, checkpoint_activations, freeze
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet, VisionModel
from trainers.m2can.encoders.text import TextEncoder
from trainers.recipe.data_sections import Encoders, PictureEncoderSection, TextEncoderSection, tiny_heads

ALIGNED = "aligned"  # beside a tower's own settings: the width in which its dual encoder compares


def require_kinds(encoders: Encoders) -> None:
    """Look at the configurations of the transformers models that a recipe names, before anything else of them is read.

    Raises:
        InputError: there is no such model, or it does not read what it is to read.
    """
    if encoders.both is not None:
        hub_models.require_dual(encoders.both)
        return
    if encoders.text.tiny is None:
        hub_models.require_tower(encoders.text.name, "text")
    if encoders.picture.name.startswith("hf:"):
        hub_models.require_tower(encoders.picture.name[3:], "vision")


def text_config(section: TextEncoderSection, vocab_size: int, pad_id: int, max_tokens: int) -> dict[str, Any]:
    """The encoder's transformers configuration, of `tiny` or as found in the folder or hub.

    Raises:
        InputError: no such encoder.
    """
    from transformers import BertConfig

    if section.tiny is not None:
        hidden, layers = section.tiny
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=tiny_heads(hidden),
            intermediate_size=2 * hidden,
            max_position_embeddings=max_tokens,
            pad_token_id=pad_id,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    else:
        config = hub_models.tower_config(hub_models.read_config(section.name, "text"), "text")
        if config.model_type.startswith("siglip"):
            config.pad_token_id = pad_id  # its text tower reads padding
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and max_tokens > limit:
            raise InputError(
                "is more than the encoder reads",
                field="data.texts.max_tokens",
                value=max_tokens,
                wanted=f"at most {limit}",
            )
        rows = getattr(config, "vocab_size", None)
        if rows is not None and vocab_size > rows:
            raise InputError(
                f"its tokenizer has {vocab_size:,} tokens and its embeddings are of {rows:,}",
                field="encoders.text.name",
                value=section.name,
                wanted="the tokenizer and the weights of one model",
            )
    if section.dropout is not None:
        hub_models.set_dropout(config, section.dropout)
    return config.to_dict()


def picture_config(section: PictureEncoderSection) -> dict[str, Any] | None:
    """The configuration of a transformers vision model or tower; None for other encoders.

    Raises:
        InputError: no such encoder.
    """
    if not section.name.startswith("hf:"):
        return None
    whole = hub_models.read_config(section.name[3:], "vision")
    settings: dict[str, Any] = hub_models.tower_config(whole, "vision").to_dict()
    if hub_models.is_dual(whole):
        settings[ALIGNED] = hub_models.projection_width(whole)
    return settings


def build_text_encoder(
    section: TextEncoderSection,
    config: dict[str, Any],
    *,
    load_weights: bool,
    checkpointed: bool = False,
    dual: Any = None,
) -> TextEncoder:
    """Raises InputError: no such encoder or weights. dual: the model whose tower is taken, if it was read already."""
    if load_weights and section.weights == "pretrained" and section.tiny is None:
        reads_pooler = section.pooling == "pooler"
        whole = dual or hub_models.read_model(section.name, "text", section.dropout, reads_pooler=reads_pooler)
        model = hub_models.tower_of(whole, "text", section.name)
    else:
        model = hub_models.tower_of(hub_models.empty_model(config), "text", section.name)
    model.train()  # from_pretrained leaves eval mode behind
    try:
        encoder = hub_models.text_tower(model, section.pooling, config)
    except ValueError as error:
        raise InputError(str(error), field="encoders.text") from None
    if load_weights and section.weights not in ("pretrained", "random"):
        _require_known_weights(section, "encoders.text")
        load_weights_file(encoder.model, section.weights, "encoders.text.weights")
    _choose_trained(encoder, section, "encoders.text", checkpointed=checkpointed)
    return encoder


def build_picture_encoder(
    section: PictureEncoderSection,
    *,
    load_weights: bool,
    checkpointed: bool = False,
    config: dict[str, Any] | None = None,
    dual: Any = None,
) -> PictureEncoder:
    """Raises InputError: no such encoder or weights.

    Args:
        config: picture_config. dual: the model whose tower is taken, if it was read already.
    """
    pretrained = load_weights and section.weights not in ("random",) and not is_weights_file(section.weights)
    kind, _, name = section.name.partition(":")
    if section.tiny is not None:
        model: nn.Module = SmallResNet(section.tiny)
        width = 8 * section.tiny
    elif kind == "torchvision":
        model, width = _torchvision(name, section.weights if pretrained else None)
    elif kind == "timm":
        _require_known_weights(section, "encoders.picture")
        model, width = _timm(name, pretrained)
    elif kind == "hf" and config is not None:
        _require_known_weights(section, "encoders.picture")
        settings = {key: value for key, value in config.items() if key != ALIGNED}
        whole = (dual or hub_models.read_model(name, "vision")) if pretrained else hub_models.empty_model(settings)
        model, width = hub_models.vision_model(hub_models.tower_of(whole, "vision", section.name), section.name)
    else:
        raise InputError(
            "unknown picture encoder",
            field="encoders.picture.name",
            value=section.name,
            wanted="`tiny`, `torchvision:<model>`, `timm:<model>` or `hf:<folder or hub name>`",
        )
    if section.head == "identity_linear":
        _append_identity(model, width)
    if load_weights and is_weights_file(section.weights):
        inside = model.model if isinstance(model, VisionModel) else model
        load_weights_file(inside, section.weights, "encoders.picture.weights")
    encoder = PictureEncoder(model, width, section.batch_norm)
    _choose_trained(encoder, section, "encoders.picture", checkpointed=checkpointed)
    return encoder


def _choose_trained(
    encoder: TextEncoder | PictureEncoder,
    section: TextEncoderSection | PictureEncoderSection,
    field: str,
    *,
    checkpointed: bool,
) -> None:
    """Freeze, put adapters in, and see to activations that are computed again. Raises InputError: it cannot be done."""
    try:
        freeze(encoder, section.freeze)
    except ValueError as error:
        known = error.most if isinstance(error, TooFewBlocks) else None
        wanted = "`none` or `all`" if known is None else f"1 to {known}, `none` or `all`"
        raise InputError(str(error), field=f"{field}.freeze", value=section.freeze, wanted=wanted) from None
    if section.lora is not None:
        add_adapters(encoder, section.lora, f"{field}.lora")
    if checkpointed:
        try:
            checkpoint_activations(encoder)
        except ValueError as error:
            key = "encoders.activation_checkpointing"
            raise InputError(
                str(error), field=key, wanted=f"`none`, or without {field.removeprefix('encoders.')}"
            ) from None


def _require_known_weights(section: TextEncoderSection | PictureEncoderSection, field: str) -> None:
    """Raises InputError: the name of weights, which only torchvision has, or of another file."""
    if section.weights not in ("pretrained", "random") and not is_weights_file(section.weights):
        raise InputError(
            "unknown weights",
            field=f"{field}.weights",
            value=section.weights,
            wanted=f"`pretrained`, `random` or {FILES}",
        )


def _torchvision(name: str, weights: str | None) -> tuple[nn.Module, int]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = nearest(name, known)
        raise InputError(
            "torchvision has no such model",
            field="encoders.picture.name",
            value=name,
            wanted=f"for example `{close or 'resnet50'}`",
        )
    chosen = "DEFAULT" if weights == "pretrained" else weights
    try:
        if chosen is not None:
            chosen = torchvision.models.get_model_weights(name)[chosen]
    except KeyError:
        wanted = ", ".join(w.name for w in torchvision.models.get_model_weights(name))
        raise InputError(
            "unknown weights", field="encoders.picture.weights", value=weights, wanted=f"{wanted}, `random` or {FILES}"
        ) from None
    try:
        model = torchvision.models.get_model(name, weights=chosen)
    except OSError as error:
        raise InputError(
            f"the weights could not be fetched ({error})",
            field="encoders.picture.weights",
            value=weights,
            wanted="a local file, or a network",
        ) from None
    for head in HEADS:
        if hasattr(model, head) and not getattr(model, "aux_logits", False):  # with those, training gives two outputs
            setattr(model, head, _without_classifier(getattr(model, head)))
            width = _width_of(model)
            if width is not None:
                return model, width
    raise InputError("its head is not known", field="encoders.picture.name", value=name, wanted="another model")


def _without_classifier(head: nn.Module) -> nn.Module:
    """What stays of a head: the normalisation and flattening before a single linear layer (ConvNeXt), else nothing."""
    parts = list(head) if isinstance(head, nn.Sequential) else [head]
    kept = [part for part in parts[:-1] if not isinstance(part, nn.Dropout)]
    linear = sum(isinstance(part, nn.Linear) for part in parts)
    return nn.Sequential(*kept) if kept and linear == 1 and isinstance(parts[-1], nn.Linear) else nn.Identity()


def _timm(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError:
        raise InputError(
            "timm is not installed",
            field="encoders.picture.name",
            value=f"timm:{name}",
            wanted="pip install 'm2can[timm]'",
        ) from None
    if not timm.is_model(name):
        close = nearest(name, timm.list_models())
        raise InputError(
            "timm has no such model", field="encoders.picture.name", value=name, wanted=f"for example `{close}`"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except RuntimeError as error:  # no weights of this tag
        problem = f"timm cannot make it ({first_line(error)})"
        raise InputError(problem, field="encoders.picture.name", value=f"timm:{name}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"the weights of timm:{name} could not be fetched ({first_line(error)})",
            field="encoders.picture.weights",
            value="pretrained",
            wanted="a network, the weights in the hub's cache (HF_HUB_OFFLINE=1 looks only there), `random`, or a file",
        ) from None
    return model, model.num_features


def _append_identity(model: nn.Module, width: int) -> None:
    linear = nn.Linear(width, width)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(width))
        linear.bias.zero_()
    if not isinstance(getattr(model, "fc", None), nn.Identity):
        raise InputError(
            "needs a ResNet of torchvision", field="encoders.picture.head", value="identity_linear", wanted="`none`"
        )
    model.fc = linear


@torch.no_grad()
def _width_of(model: nn.Module) -> int | None:
    """The feature width, by asking: families keep it in different places. None if the output is no vector."""
    training = model.training
    shape = model.eval()(torch.zeros(1, 3, 224, 224)).shape
    model.train(training)
    return int(shape[1]) if len(shape) == 2 else None
