"""From a recipe to network, discriminators, objective and optimizers. Here encoders are found by name and weights read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer

from datasets_manifest.errors import InputError, first_line, nearest
from trainers.m2can import schedules
from trainers.m2can.encoders import wrappers as m2can_encoders
from trainers.m2can.encoders.wrappers import PictureEncoder, SmallResNet, TextEncoder
from trainers.m2can.losses.adversarial import Discriminators
from trainers.m2can.network import FUSED, M2CAN
from trainers.m2can.objective import Objective
from trainers.recipe.recipe import (
    DiscriminatorSection,
    LearningRates,
    OptimizerSection,
    PictureEncoderSection,
    Recipe,
    ScheduleSection,
    TextEncoderSection,
)

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls a model's last part


def text_config(section: TextEncoderSection, vocab_size: int, pad_id: int, max_tokens: int) -> dict[str, Any]:
    """The encoder's transformers configuration, of `tiny` or as found in the folder or hub.

    Raises:
        InputError: no such encoder.
    """
    from transformers import AutoConfig, BertConfig

    if section.name == "tiny":
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=section.hidden,
            num_hidden_layers=section.layers,
            num_attention_heads=max(1, section.hidden // 32),
            intermediate_size=2 * section.hidden,
            max_position_embeddings=max_tokens,
            pad_token_id=pad_id,
        )
    else:
        try:
            config = AutoConfig.from_pretrained(section.name)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no text encoder could be read ({first_line(error)})",
                field="encoders.text.name",
                value=section.name,
                wanted="`tiny`, a local folder or a hub name of a transformers encoder",
            ) from None
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and max_tokens > limit:
            raise InputError(
                "is more than the encoder reads",
                field="data.texts.max_tokens",
                value=max_tokens,
                wanted=f"at most {limit}",
            )
    if section.dropout is not None:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, section.dropout)
    return config.to_dict()


def build_text_encoder(section: TextEncoderSection, config: dict[str, Any], *, load_weights: bool) -> TextEncoder:
    from transformers import AutoConfig, AutoModel

    settings = dict(config)
    made = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if load_weights and section.weights == "pretrained" and section.name != "tiny":
        try:
            model = AutoModel.from_pretrained(section.name, config=made, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(
                f"its weights could not be read ({first_line(error)})",
                field="encoders.text.weights",
                value=section.name,
                wanted="a folder or hub name with weights, `random` or a file",
            ) from None
    else:
        model = AutoModel.from_config(made, dtype=torch.float32)
    model.train()  # from_pretrained leaves eval mode behind
    try:
        encoder = TextEncoder(model, section.pooling)
        m2can_encoders.freeze(encoder, section.freeze)
        if section.activation_checkpointing:
            m2can_encoders.checkpoint_activations(encoder)
    except ValueError as error:
        raise InputError(str(error), field="encoders.text") from None
    if load_weights and section.weights not in ("pretrained", "random"):
        load_weights_file(encoder.model, section.weights, "encoders.text.weights")
    return encoder


def build_picture_encoder(section: PictureEncoderSection, *, load_weights: bool) -> PictureEncoder:
    """Raises InputError: no such encoder or weights."""
    pretrained = load_weights and section.weights not in ("random",) and not _is_file(section.weights)
    kind, _, name = section.name.partition(":")
    if section.name == "tiny":
        model: nn.Module = SmallResNet(section.width)
        width = 8 * section.width
    elif kind == "torchvision":
        model, width = _torchvision(name, section.weights if pretrained else None)
    elif kind == "timm":
        model, width = _timm(name, pretrained)
    else:
        raise InputError(
            "unknown picture encoder",
            field="encoders.picture.name",
            value=section.name,
            wanted="`tiny`, `torchvision:<model>` or `timm:<model>`",
        )
    if section.head == "identity_linear":
        _append_identity(model, width)
    if load_weights and _is_file(section.weights):
        load_weights_file(model, section.weights, "encoders.picture.weights")
    encoder = PictureEncoder(model, width, section.batch_norm, section.ghosts)
    try:
        m2can_encoders.freeze(encoder, section.freeze)
    except ValueError as error:
        raise InputError(str(error), field="encoders.picture.freeze", value=section.freeze) from None
    if section.activation_checkpointing:
        try:
            m2can_encoders.checkpoint_activations(encoder)
        except ValueError:
            raise InputError(
                "the blocks of this architecture are not known",
                field="encoders.picture.activation_checkpointing",
                value=True,
                wanted="false",
            ) from None
    return encoder


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
            "unknown weights", field="encoders.picture.weights", value=weights, wanted=f"{wanted}, `random` or a file"
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
    model = timm.create_model(name, pretrained=pretrained, num_classes=0)
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


def _is_file(weights: str) -> bool:
    return weights.endswith((".safetensors", ".pt", ".pth", ".bin"))


def load_weights_file(model: nn.Module, path: str, field: str) -> None:
    """Load a safetensors or weights-only file. Nothing in it is executed.

    Raises:
        InputError: missing, unreadable, or its tensors are not the model's (heads that were cut off may be left over).
    """
    file = Path(path)
    if not file.is_file():
        raise InputError("there is no such file", file=file, field=field)
    try:
        if file.suffix == ".safetensors":
            state: dict[str, Any] = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds, all of them mean the same here
        raise InputError(f"cannot be read as weights ({first_line(error)})", file=file, field=field) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError("does not hold tensors by name", file=file, field=field, wanted="a state dict")
    ours = model.state_dict()
    state = {
        name: x
        for name, x in state.items()
        if not (name.split(".")[0] in HEADS and name in ours and getattr(x, "shape", None) != ours[name].shape)
    }
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"does not fit the encoder ({str(error).splitlines()[-1].strip()})", file=file, field=field
        ) from None
    missing = [name for name in missing if not name.startswith("fc.")]
    if missing:
        raise InputError(
            f"lacks {len(missing)} of the encoder's tensors",
            file=file,
            field=field,
            value=missing[:5],
            wanted="all of them",
        )


def build_network(recipe: Recipe, config: dict[str, Any], num_classes: int, *, load_weights: bool) -> M2CAN:
    """The network of a recipe.

    Args:
        config: the text encoder's configuration (text_config).
        load_weights: False where a checkpoint's weights follow anyway.
    """
    text = build_text_encoder(recipe.encoders.text, config, load_weights=load_weights)
    picture = build_picture_encoder(recipe.encoders.picture, load_weights=load_weights)
    return M2CAN(text, picture, len(recipe.data.sources), num_classes, **recipe.network.model_dump())


def build_discriminators(
    num_sources: int, num_classes: int, section: DiscriminatorSection | None = None
) -> Discriminators:
    section = section or DiscriminatorSection()
    return Discriminators(num_sources + 1, FUSED, num_classes, **section.model_dump())


def build_objective(recipe: Recipe) -> Objective:
    return Objective(num_sources=len(recipe.data.sources), **recipe.objective.model_dump())


def build_optimizers(
    network: M2CAN, discriminators: Discriminators, section: OptimizerSection, batch_size: int | None = None
) -> tuple[Optimizer, Optimizer]:
    """The network's optimizer and the discriminators', with a group and a rate for each part.

    Args:
        batch_size: of the run; `section` says how the rates follow it.
    """
    lr = _scaled(section, batch_size)
    parts: list[tuple[str, nn.Module | None, float]] = [
        ("text_encoder", network.text_encoder, lr.encoders),
        ("picture_encoder", network.picture_encoder, lr.encoders),
        ("text_projection", network.text_projection, lr.projections),
        ("picture_projection", network.picture_projection, lr.projections),
        ("fusion", network.fusion, lr.fusion),
        *((f"head_{i}", head, lr.heads) for i, head in enumerate(network.heads)),
        ("picture_head", network.picture_head, lr.heads),
        ("text_head", network.text_head, lr.heads),
    ]
    pairs: list[tuple[str, nn.Module | None, float]] = [
        (
            f"discriminator_{a}_{b}",
            module,
            lr.discriminators_target if b == discriminators.target else lr.discriminators_source,
        )
        for (a, b), module in zip(discriminators.pairs, discriminators, strict=True)
    ]
    return _optimizer(parameter_groups(parts), section), _optimizer(parameter_groups(pairs), section)


def _scaled(section: OptimizerSection, batch_size: int | None) -> LearningRates:
    if section.reference_batch is None or batch_size is None:
        return section.lr
    ratio = batch_size / section.reference_batch
    factor = ratio if section.scale_lr == "linear" else ratio**0.5
    return LearningRates(**{name: rate * factor for name, rate in section.lr.model_dump().items()})


def _optimizer(groups: list[dict[str, Any]], section: OptimizerSection) -> Optimizer:
    decay = section.weight_decay
    fused = True if groups and groups[0]["params"][0].device.type in ("cpu", "cuda") else None  # one kernel for all
    if section.type == "adam":
        return Adam(groups, betas=section.betas, eps=section.eps, weight_decay=decay, fused=fused)
    if section.type == "adamw":
        return AdamW(groups, betas=section.betas, eps=section.eps, weight_decay=decay, fused=fused)
    if section.type == "sgd":
        return SGD(groups, lr=0.0, momentum=section.momentum, weight_decay=decay)
    return Adadelta(groups, eps=section.eps, weight_decay=decay)


def build_schedule(section: ScheduleSection, epochs: int, steps_per_epoch: int) -> schedules.Schedule:
    total = epochs * steps_per_epoch
    if section.mode == "poly":
        return schedules.poly(total, section.power, section.lowest_lr)
    if section.mode == "cosine":
        return schedules.cosine(total, section.target_lr)
    milestones = [epoch * steps_per_epoch for epoch in section.multistep] if section.mode == "multistep" else []
    return schedules.multistep(milestones)


def parameter_groups(modules: list[tuple[str, nn.Module | None, float]]) -> list[dict[str, Any]]:
    """Optimizer groups (name, parameters, lr, base_lr) of the modules that have something to train."""
    groups: list[dict[str, Any]] = []
    for name, module, lr in modules:
        trainable = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        if trainable:
            groups.append({"params": trainable, "lr": lr, "base_lr": lr, "name": name})
    return groups
