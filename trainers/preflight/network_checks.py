"""Looks into a network before it trains."""

from __future__ import annotations

import torch
from torch import nn

from datasets_manifest.errors import InputError, first_line
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.network import M2CAN


@torch.no_grad()
def require_size(network: M2CAN, crop: int) -> None:
    """Raises InputError: the picture encoder does not take pictures of `crop` pixels."""
    encoder = network.picture_encoder
    if not isinstance(encoder, PictureEncoder):
        return
    try:
        _show_blank(network, crop)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"the picture encoder takes no pictures of this size ({first_line(error)})",
            field="data.pictures.crop",
            value=crop,
            wanted="the size that it was trained with: leave `crop` and `resize` out",
        ) from None


@torch.no_grad()
def require_statistics(network: M2CAN, crop: int) -> None:
    """A sample's batch statistics need more than one value a channel: a map of one pixel has none.

    Raises:
        InputError: `per_sample` batch normalisation, and pictures of `crop` pixels shrink to one pixel on their way.
    """
    encoder = network.picture_encoder
    if not isinstance(encoder, PictureEncoder) or encoder.groups.mode != "per_sample":
        return
    smallest: list[int] = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        smallest.append(inputs[0].shape[2] * inputs[0].shape[3])

    trained = [layer for layer in encoder.groups.layers if layer.weight.requires_grad]
    hooks = [layer.register_forward_pre_hook(look) for layer in trained]
    _show_blank(network, crop)
    for hook in hooks:
        hook.remove()
    if smallest and min(smallest) == 1:
        raise InputError(
            f"pictures of {crop} pixels shrink to a single one before a normalisation layer, whose statistics over a "
            "sample would be empty",
            field="encoders.picture.batch_norm",
            value="per_sample",
            wanted="`batch` or `frozen`, or a larger data.pictures.crop",
        )


def _show_blank(network: M2CAN, crop: int) -> None:
    model: nn.Module = network.picture_encoder.model  # type: ignore[assignment]
    training = network.training
    network.eval()
    try:
        model(next(network.parameters()).new_zeros(1, 3, crop, crop))
    finally:
        network.train(training)


def require_parts(network: M2CAN, parts: int) -> None:
    """Raises InputError: the worker's slice is to go through in parts, and its batch statistics are of the whole."""
    groups = getattr(network.picture_encoder, "groups", None)
    if parts > 1 and groups is not None and groups.needs_whole_batch:
        raise InputError(
            "a part's statistics would not be the batch's",
            field="train.accumulate",
            value=parts,
            wanted="1, or encoders.picture.batch_norm `per_sample` or `frozen`",
        )
