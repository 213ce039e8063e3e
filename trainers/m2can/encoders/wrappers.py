"""Encoders of texts and pictures: one call for all domains and views, ragged pictures, no padding slots."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from trainers.m2can.batch import Batch
from trainers.m2can.encoders.batch_norm import BatchNormMode, GroupedBatchNorm2d, PictureGroups
from trainers.m2can.encoders.packed_text import Pooling, can_be_packed, encode_packed, group_by_length


class GivenFeatures(nn.Module):
    """Takes the place of an encoder where the batch already holds features, e.g. cached ones of a frozen encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features_NK: Tensor, *_: Any) -> Tensor:
        return features_NK


class TextEncoder(nn.Module):
    """A Hugging Face encoder with a pooling.

    Args:
        model: a model of transformers.AutoModel's kind (`last_hidden_state`, and `pooler_output` for `pooler`).
        pooling: `pooler` (BERT's tanh of the first token's projection), `cls` (first token), `mean` (of real tokens).

    Where the lengths of the texts are known, the cost follows their sum and not the longest, and the features are the
    same: BERT's kind computes no padded token (see packed_text) while `packs`, which whoever compiles the model
    sets to False; others take the texts in a few groups of similar length.

    Shape:
        tokens [N, L] padded on the right, mask [N, L], lengths [N] in host memory → [N, width]
    """

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        if pooling != "pooler" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]  # parameters without a gradient would stop data parallelism
        if pooling == "pooler" and getattr(model, "pooler", None) is None:
            raise ValueError(f"pooling `pooler`: {type(model).__name__} has no pooler; use `cls` or `mean`")
        self.model = model
        self.pooling = pooling
        config: Any = model.config
        self.width = int(config.hidden_size)
        is_bert_like = hasattr(model, "embeddings") and hasattr(getattr(model, "encoder", None), "layer")
        self._takes_prepared_masks = is_bert_like and getattr(config, "_attn_implementation", "") == "sdpa"
        self.packs = can_be_packed(model) and config.num_hidden_layers > 0

    def forward(self, tokens_NL: Tensor, mask_NL: Tensor, lengths_N: Tensor | None = None) -> Tensor:
        if lengths_N is None:
            return self._encode(tokens_NL, mask_NL, None)
        lengths = lengths_N.numpy()
        if self.packs:
            return encode_packed(self.model, tokens_NL, lengths, self.pooling)
        groups = group_by_length(lengths, tokens_NL.shape[1])
        if len(groups) == 1:
            return self._encode(tokens_NL, mask_NL, lengths)
        order_N = torch.from_numpy(np.concatenate([rows for rows, _ in groups]))
        back_N, order_N = order_N.argsort().to(tokens_NL.device), order_N.to(tokens_NL.device)
        features = [
            self._encode(tokens_NL[at, :length], mask_NL[at, :length], lengths[rows])
            for at, (rows, length) in zip(order_N.split([len(rows) for rows, _ in groups]), groups, strict=True)
        ]
        return torch.cat(features)[back_N]

    def _encode(self, tokens_NL: Tensor, mask_NL: Tensor, lengths: np.ndarray | None) -> Tensor:
        mask: Tensor | None = mask_NL
        if lengths is not None and self._takes_prepared_masks:
            # transformers would ask the device whether anything is masked at all.
            mask = None if (lengths == mask_NL.shape[1]).all() else mask_NL.bool()[:, None, None]
        out = self.model(input_ids=tokens_NL, attention_mask=mask)
        if self.pooling == "pooler":
            return out.pooler_output
        hidden_NLK = out.last_hidden_state
        if self.pooling == "cls":
            return hidden_NLK[:, 0]
        weight_NL1 = mask_NL.unsqueeze(-1).to(hidden_NLK.dtype)
        return (hidden_NLK * weight_NL1).sum(1) / weight_NL1.sum(1).clamp_min(1)


class PictureEncoder(nn.Module):
    """A picture backbone; a sample's feature is the mean over its pictures, zero where it has none.

    Args:
        model: pictures [P, 3, height, width] → features [P, width].
        width: the backbone's feature width.
        batch_norm, ghosts: see trainers.m2can.encoders.batch_norm.
    """

    def __init__(self, model: nn.Module, width: int, batch_norm: BatchNormMode, ghosts: int = 1) -> None:
        super().__init__()
        self.groups = PictureGroups(batch_norm, ghosts)
        self.model = GroupedBatchNorm2d.convert(model, self.groups)
        self.width = width

    def forward(self, pictures_P: Tensor, batch: Batch) -> Tensor:
        """[P, 3, height, width] → [N, width]"""
        assert batch.picture_owner is not None
        if self.training and self.groups.layers:
            self.groups.begin(batch)
        features_PK = self.model(pictures_P)
        # One more row than samples: it takes the placeholder of a batch without any picture, and is dropped.
        totals = features_PK.new_zeros(batch.num_rows + 1, self.width).index_add(0, batch.picture_owner, features_PK)
        counts_N1 = batch.pictures_of_rows()[:-1].clamp_min(1).unsqueeze(1)
        return totals[:-1] / counts_N1.to(totals.device, totals.dtype, non_blocking=True)


class SmallResNet(nn.Sequential):
    """A ResNet of one BasicBlock a stage for demos and tests: widths w, 2w, 4w, 8w after a stem of stride 4.

    Source: He et al., CVPR 2016, scaled down.
    """

    def __init__(self, width: int = 16, stages: int = 4) -> None:
        widths = [width * 2**i for i in range(stages)]
        stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        blocks = [BasicBlock(width, width)]
        for before, after in itertools.pairwise(widths):
            shortcut = nn.Sequential(conv1x1(before, after, stride=2), nn.BatchNorm2d(after))
            blocks.append(BasicBlock(before, after, stride=2, downsample=shortcut))
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.width = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
    if hasattr(model, "embeddings") and hasattr(getattr(model, "encoder", None), "layer"):  # the BERT family
        return [model.embeddings, *model.encoder.layer]
    if hasattr(model, "embeddings") and hasattr(getattr(model, "transformer", None), "layer"):  # DistilBERT
        return [model.embeddings, *model.transformer.layer]
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
    model: Any = encoder.model
    if isinstance(encoder, TextEncoder) and getattr(model, "supports_gradient_checkpointing", False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    for block in blocks_of(encoder)[1:]:  # the stem's input are the pictures themselves
        block.forward = functools.partial(_again_in_backward, block, block.forward)


def subsample_before_pointwise(module: nn.Module) -> None:
    """Strided 1×1 convolutions pick their pixels first and go over them without a stride: the same numbers.

    torch's own kernel (2.14, oneDNN's for channels last on the CPU) gives wrong gradients of their weights, and writes
    beyond its memory.
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1):
            padding = (0, 0) if isinstance(conv.padding, str) else conv.padding  # with a stride: `valid`
            conv.register_forward_pre_hook(functools.partial(_pick_pixels, conv.stride, padding))
            conv.stride, conv.padding = (1, 1), (0, 0)


def _pick_pixels(stride: tuple[int, ...], padding: tuple[int, ...], _: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    (rows, columns), (above, left) = stride, padding
    x = F.pad(inputs[0], (left, left, above, above)) if above or left else inputs[0]  # padding by nothing copies
    return x[..., ::rows, ::columns]


def _again_in_backward(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return torch.utils.checkpoint.checkpoint(forward, *inputs, use_reentrant=False)
