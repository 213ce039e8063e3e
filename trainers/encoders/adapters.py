"""LoRA: small trained matrices beside the frozen layers of an encoder, by peft, and their merging into plain weights.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from datasets_manifest.errors import InputError, nearest
from trainers.m2can.encoders.half_weights import HalfWeights
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.floor import Network
from trainers.recipe.data_sections import Lora

_SHOWN = 12  # names in a message
_SIDE = 224  # pixels of a picture that is shown to an encoder that does not say its own size


def add_adapters(encoder: TextEncoder | PictureEncoder, section: Lora, field: str) -> None:
    """Put an adapter beside each target and freeze all else. The features stay the same to the last bit.

    An adapter starts as zero. Targets are layers that train: frozen blocks get none.

    Args:
        encoder: already frozen as `freeze` says. field: of the section, `encoders.text.lora`.

    Raises:
        InputError: a target is no layer that can have an adapter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = adaptable_layers(encoder)
    targets = _targets(layers, section.targets, f"{field}.targets")
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules="|".join(name.replace(".", r"\.") for name in targets),  # as a pattern names are whole
    )
    training = encoder.training
    inject_adapter_in_model(config, encoder.model)
    encoder.train(training)
    encoder.half_weights = HalfWeights(encoder.model)


@torch.no_grad()
def merge_adapters(network: Network) -> None:
    """Add the adapters to the weights that they stand beside; afterwards the network is as it was built without them."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            network.set_submodule(name, layer.get_base_layer(), strict=True)
    for encoder in (network.text_encoder, network.picture_encoder):
        if isinstance(encoder, TextEncoder | PictureEncoder):
            encoder.half_weights = HalfWeights(encoder.model)


def adaptable_layers(encoder: TextEncoder | PictureEncoder) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by their names in the model.

    Linear layers, and convolutions that are neither grouped nor dilated, whose weights train and that are called: torch's
    attention and Swin take the weights of some layers and do not call them, so that an adapter would do nothing.
    """
    candidates = {name: layer for name, layer in encoder.model.named_modules() if _is_adaptable(layer)}
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.add(layer)) for layer in candidates.values()]
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            _show(encoder)()
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    return {name: layer for name, layer in candidates.items() if layer in called}


def _is_adaptable(layer: Any) -> bool:
    plain = type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d and layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    )
    return plain and layer.weight.requires_grad


def _show(encoder: TextEncoder | PictureEncoder) -> Callable[[], Any]:
    """Calls the encoder with the smallest input."""
    weight = next(encoder.parameters())
    if isinstance(encoder, TextEncoder):
        ones = torch.ones(1, 3, dtype=torch.long, device=weight.device)
        return lambda: encoder(ones, ones)
    model: Any = encoder.model
    size = getattr(model, "image_size", None) or (getattr(model, "default_cfg", None) or {}).get("input_size")
    side = size if isinstance(size, int) else size[-1] if size else _SIDE
    return lambda: model(weight.new_zeros(1, 3, side, side))


def _targets(layers: dict[str, nn.Module], wanted: list[str] | None, field: str) -> list[str]:
    """Names of the layers that get an adapter."""
    if not layers:
        part = field.rpartition(".")[0]
        instead = f"a smaller number in {part.rpartition('.')[0]}.freeze if it is one, or another encoder"
        raise InputError("the encoder has no layer that can have an adapter", field=part, wanted=instead)
    if wanted is None:
        return [name for name, layer in layers.items() if isinstance(layer, nn.Linear)] or list(layers)
    names: list[str] = []
    for target in wanted:
        matched = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not matched:
            known = _short_names(layers)
            close = nearest(target, known)
            shown = ", ".join(known[:_SHOWN]) + (f", … ({len(known)} names)" if len(known) > _SHOWN else "")
            raise InputError(
                "matches no layer that can have an adapter",
                field=field,
                value=target,
                wanted=f"ends of names such as {shown}" + (f" (nearest: {close})" if close else ""),
            )
        names += [name for name in matched if name not in names]
    return names


def _short_names(layers: dict[str, nn.Module]) -> list[str]:
    """The ends of names from the last word on that is no number, each once: `query`, `mlp.0`."""
    short: dict[str, None] = {}
    for name in layers:
        parts = name.split(".")
        start = next((n for n in range(len(parts) - 1, 0, -1) if not parts[n].isdigit()), 0)
        short[".".join(parts[start:])] = None
    return list(short)
