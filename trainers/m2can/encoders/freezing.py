"""The blocks of an encoder: which are frozen, and which are computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.encoders.transformers_compat import text_layers


def blocks_of(encoder: TextEncoder | PictureEncoder | GivenFeatures) -> list[nn.Module]:
    """The blocks that `freeze: k` counts, input first; block 0 is the embeddings or the stem.

    Raises:
        ValueError: the architecture's blocks are not known here.
    """
    model: Any = getattr(encoder, "model", nn.Identity())
    if isinstance(model, SmallResNet):
        return [m for m in model if any(True for _ in m.parameters())]
    if hasattr(model, "layer4"):  # torchvision and timm ResNets
        stem = nn.ModuleList([model.conv1, model.bn1])
        return [stem, model.layer1, model.layer2, model.layer3, model.layer4]
    if isinstance(getattr(model, "features", None), nn.Sequential):  # torchvision's convolutional families
        return list(model.features)
    if hasattr(model, "conv_stem") and hasattr(model, "blocks"):  # timm's EfficientNets
        return [nn.ModuleList([model.conv_stem, model.bn1]), *model.blocks]
    layers = text_layers(model)
    if layers is not None:
        return layers
    raise ValueError(f"freeze by blocks is not known for {type(model).__name__}; use `none` or `all`")


def freeze(encoder: TextEncoder | PictureEncoder, what: Literal["none", "all"] | int) -> None:
    """Stop the gradients of all parameters, of none, or of the first `what` blocks and what lies before them."""
    if what == "none":
        return
    parts = [encoder] if what == "all" else blocks_of(encoder)[:what]
    for part in parts:
        part.requires_grad_(False)


def checkpoint_activations(encoder: TextEncoder | PictureEncoder) -> None:
    """In training keep only what goes into each block; the backward pass computes the rest again. Exact, dropout too.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.

    Raises:
        ValueError: the architecture's blocks are not known here.
    """
    encoder.half_weights.enabled = False  # the backward pass would find the parameters in the place of their copies
    model: Any = encoder.model
    if isinstance(encoder, TextEncoder) and getattr(model, "supports_gradient_checkpointing", False):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return
    for block in blocks_of(encoder)[1:]:  # the stem's input are the pictures themselves
        block.forward = functools.partial(_again_in_backward, block, block.forward)


def _again_in_backward(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False)
