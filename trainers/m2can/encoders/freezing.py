"""The blocks of an encoder: which are frozen, and which are computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet, VisionModel
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.encoders.transformers_compat import text_layers

Encoder = TextEncoder | PictureEncoder | GivenFeatures


class TooFewBlocks(ValueError):
    """More blocks are to be frozen than an encoder has. most: how many it has."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the encoder has {most} blocks")
        self.most = most


def blocks_of(encoder: Encoder) -> list[nn.Module]:
    """The blocks that `freeze: k` counts, input first; block 0 is the embeddings or the stem.

    Of architectures that are not named here they are the members of the largest list of layers.

    Raises:
        ValueError: there is no such list.
    """
    model = _inside(encoder)
    if isinstance(model, SmallResNet):
        return [m for m in model if any(True for _ in m.parameters())]
    if hasattr(model, "layer4"):  # torchvision and timm ResNets
        stem = nn.ModuleList([model.conv1, model.bn1])
        return [stem, model.layer1, model.layer2, model.layer3, model.layer4]
    if hasattr(model, "stage4") and hasattr(model, "conv5"):  # torchvision's ShuffleNets
        return [model.conv1, model.stage2, model.stage3, model.stage4, model.conv5]
    if isinstance(getattr(model, "features", None), nn.Sequential):  # torchvision's convolutional families
        return list(model.features)
    if hasattr(model, "conv_stem") and hasattr(model, "blocks"):  # timm's EfficientNets
        return [nn.ModuleList([model.conv_stem, model.bn1]), *model.blocks]
    return text_layers(model) or _largest_list(model)


def parameter_blocks(encoder: Encoder) -> list[list[nn.Parameter]]:
    """The parameters of each block, input first; those behind the last block are in none.

    What stands before a block belongs to the one before it: class tokens, position embeddings. timm's models say
    themselves how they are grouped.

    Raises:
        ValueError: the architecture's blocks are not known here.
    """
    model = _inside(encoder)
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        groups = group_parameters(model, model.group_matcher(coarse=True), return_values=True)
        return [groups[number] for number in sorted(groups)]
    blocks = blocks_of(encoder)
    block_of = {parameter: number for number, block in enumerate(blocks) for parameter in block.parameters()}
    found: list[list[nn.Parameter]] = [[] for _ in blocks]
    current, left = 0, len(block_of)
    for parameter in model.parameters():
        if parameter in block_of:
            current, left = block_of[parameter], left - 1
        elif left == 0:
            break
        found[current].append(parameter)
    return found


def freeze(encoder: TextEncoder | PictureEncoder, what: Literal["none", "all"] | int) -> None:
    """Stop the gradients of all parameters, of none, or of the first `what` blocks and what lies before them.

    Raises:
        ValueError: there are not so many blocks, or the architecture's are not known here.
    """
    if what == "none":
        return
    if what == "all":
        encoder.requires_grad_(False)
        return
    blocks = parameter_blocks(encoder)
    if what > len(blocks):
        raise TooFewBlocks(len(blocks))
    for block in blocks[:what]:
        for parameter in block:
            parameter.requires_grad_(False)


def checkpoint_activations(encoder: TextEncoder | PictureEncoder) -> None:
    """In training keep only what goes into each block; the backward pass computes the rest again. Exact, dropout too.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.

    Raises:
        ValueError: the architecture's blocks are not known here.
    """
    encoder.half_weights.enabled = False  # the backward pass would find the parameters in the place of their copies
    model = _inside(encoder)
    if getattr(model, "supports_gradient_checkpointing", False):  # of transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return
    for block in blocks_of(encoder)[1:]:  # the stem's input are the pictures themselves
        block.forward = functools.partial(_again_in_backward, block, block.forward)


def _inside(encoder: Encoder) -> Any:
    """The library's own model."""
    model = getattr(encoder, "model", nn.Identity())
    return model.model if isinstance(model, VisionModel) else model


def _largest_list(model: nn.Module) -> list[nn.Module]:
    """The modules before the largest list of layers, as one block, and the list's members.

    Raises:
        ValueError: there is no list of layers.
    """
    lists = list(_outermost_lists(model, ""))
    if not lists:
        raise ValueError(f"the blocks of a {type(model).__name__} are not known here")
    path, largest = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
    before: list[nn.Module] = []
    node = model
    for name in path.split(".") if path else []:
        for sibling, module in node.named_children():
            if sibling == name:
                node = module
                break
            before.append(module)
    stem = nn.ModuleList(before)
    has_stem = next(stem.parameters(), None) is not None
    return [*([stem] if has_stem else []), *largest.children()]


def _outermost_lists(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(model, nn.Sequential | nn.ModuleList):
        yield path, model
        return
    for name, child in model.named_children():
        yield from _outermost_lists(child, f"{path}.{name}" if path else name)


def _again_in_backward(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor, **named: Any) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **named)
    return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False, **named)
