"""Picture encoders: any backbone over ragged pictures, without padding slots."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from trainers.m2can.batch import Batch
from trainers.m2can.encoders.batch_norm import BatchNormMode, GroupedBatchNorm2d, PictureGroups
from trainers.m2can.encoders.half_weights import HalfWeights


class PictureEncoder(nn.Module):
    """A picture backbone; a sample's feature is the mean over its pictures, zero where it has none.

    Args:
        model: pictures [P, 3, height, width] → features [P, width].
        width: the backbone's feature width.
        batch_norm: see trainers.m2can.encoders.batch_norm.
    """

    def __init__(self, model: nn.Module, width: int, batch_norm: BatchNormMode) -> None:
        super().__init__()
        self.groups = PictureGroups(batch_norm)
        self.model = GroupedBatchNorm2d.convert(model, self.groups)
        self.half_weights = HalfWeights(self.model)
        self.width = width

    def forward(self, pictures_P: Tensor, batch: Batch) -> Tensor:
        """[P, 3, height, width] → [N, width]"""
        assert batch.picture_owner is not None
        if self.training and self.groups.layers:
            self.groups.begin(batch)
        features_PK = self.half_weights.call(pictures_P)
        # One more row than samples: it takes the placeholder of a batch without any picture, and is dropped.
        totals = features_PK.new_zeros(batch.num_rows + 1, self.width).index_add(0, batch.picture_owner, features_PK)
        counts_N1 = batch.counts_on(totals.device)[:-1].clamp_min(1).unsqueeze(1)
        return totals[:-1] / counts_N1.to(totals.dtype)


class VisionModel(nn.Module):
    """A transformers vision model as pictures [P, 3, height, width] → features [P, K].

    The feature is the model's pooled output, or the first token's where it has none or a pooler made for another head.

    Args:
        image_size: pixels that the model was trained with.
        interpolates: whether it takes other sizes when it is asked to.
    """

    def __init__(self, model: nn.Module, image_size: int, *, interpolates: bool) -> None:
        super().__init__()
        if isinstance(getattr(getattr(model, "pooler", None), "dense", None), nn.Linear):
            model.pooler = None  # type: ignore[assignment]  # random in most weights; ViT, DeiT
        self.model = model
        self.image_size, self.interpolates = image_size, interpolates

    def forward(self, pictures_P: Tensor) -> Tensor:
        other = self.interpolates and pictures_P.shape[-1] != self.image_size
        out = self.model(pixel_values=pictures_P, **({"interpolate_pos_encoding": True} if other else {}))
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


class SmallResNet(nn.Sequential):
    """A ResNet of one BasicBlock a stage for demos and tests: widths w, 2w, 4w, 8w after a stem of stride 4.

    Source: He et al., CVPR 2016, scaled down.
    """

    def __init__(self, width: int) -> None:
        widths = [width * 2**stage for stage in range(4)]
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
