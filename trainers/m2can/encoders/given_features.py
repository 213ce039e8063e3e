"""Features that were computed before, in the place of an encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainers.m2can.encoders.batch_norm import PictureGroups


class GivenFeatures(nn.Module):
    """Takes the place of an encoder where the batch already holds features, e.g. cached ones of a frozen encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.groups = PictureGroups("frozen")  # nothing to normalise

    def forward(self, features_NK: Tensor, *_: Any) -> Tensor:
        return features_NK
