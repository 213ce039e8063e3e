"""Looks into a network before it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datasets_manifest.errors import InputError, first_line
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.network import M2CAN


@torch.no_grad()
def require_size(network: M2CAN, crop: int) -> None:
    """Raises InputError: the picture encoder does not take pictures of `crop` pixels, or makes no finite features of them."""
    encoder = network.picture_encoder
    if not isinstance(encoder, PictureEncoder):
        return
    try:
        features_1K = _show_blank(network, crop)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"the picture encoder takes no pictures of this size ({first_line(error)})",
            field="data.pictures.crop",
            value=crop,
            wanted="the size that it was trained with: leave `crop` and `resize` out",
        ) from None
    _require_finite(features_1K, "encoders.picture.weights")


@torch.no_grad()
def require_texts(network: M2CAN) -> None:
    """Raises InputError: the text encoder takes no batch of tokens (one with a decoder), or gives no finite features."""
    encoder = network.text_encoder
    if not isinstance(encoder, TextEncoder):
        return
    ones_13 = torch.ones(1, 3, dtype=torch.long, device=next(encoder.parameters()).device)
    training = encoder.training
    encoder.eval()
    try:
        features_1K = encoder(ones_13, ones_13, torch.tensor([3]))
    except Exception as error:  # models raise many kinds, all of them mean the same here
        raise InputError(
            f"a {type(encoder.model).__name__} takes no batch of texts alone ({first_line(error)})",
            field="encoders.text.name",
            wanted="a transformers encoder of texts, such as BERT, or a dual encoder",
        ) from None
    finally:
        encoder.train(training)
    _require_finite(features_1K, "encoders.text.weights")


def _require_finite(features_1K: Tensor, field: str) -> None:
    if not torch.isfinite(features_1K).all():
        wanted = "weights that are whole"
        raise InputError("the encoder gives features that are no finite numbers", field=field, wanted=wanted)


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


def _show_blank(network: M2CAN, crop: int) -> Tensor:
    model: nn.Module = network.picture_encoder.model  # type: ignore[assignment]
    training = network.training
    network.eval()
    try:
        features: Tensor = model(next(network.parameters()).new_zeros(1, 3, crop, crop))
    finally:
        network.train(training)
    return features


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
