"""Zero-shot classification by a dual encoder: a sample's class is that whose prompts are most like its text and pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.m2can.network import FUSED, M2CAN, Projection


class ZeroShotHead(nn.Module):
    """Features of both modalities [N, K + K'] → logits [N, C], and 64 principal components of the projected features.

    Logits are scale · (t + v) · c: t and v are the unit projections of a sample's text and pictures, and c is the unit mean of
    the projected prompts of a class. A modality that is not read, and pictures that a sample lacks, add nothing.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

    Args:
        widths: K and K'. projected: A, the width in which the dual encoder compares. num_classes: C.
    """

    read_M: Tensor
    classes_CA: Tensor
    scale: Tensor
    components_FA: Tensor

    def __init__(self, widths: tuple[int, int], projected: int, num_classes: int) -> None:
        super().__init__()
        self.widths = widths
        self.projections = nn.ModuleList(Projection(width, projected, rectified=False) for width in widths)
        self.requires_grad_(False)
        self.register_buffer("read_M", torch.ones(2))
        self.register_buffer("classes_CA", torch.zeros(num_classes, projected))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("components_FA", torch.zeros(FUSED, projected))

    @torch.no_grad()
    def take(self, network: M2CAN, classes_CA: Tensor, scale: float) -> None:
        """Hold the projections of a network that begins as a dual encoder, and the classes' prompts."""
        own = network.text_projection, network.picture_projection
        for mine, theirs in zip(self.projections, own, strict=True):
            mine.load_state_dict(theirs.state_dict())
        self.read_M.copy_(torch.tensor([network.modalities != "pictures", network.modalities != "text"]))
        self.classes_CA.copy_(classes_CA)
        self.scale.fill_(scale)

    def forward(self, features_NK: Tensor) -> tuple[Tensor, Tensor]:
        joint_NA = self.joint(features_NK)
        return self.scale * joint_NA @ self.classes_CA.T, joint_NA @ self.components_FA.T

    def of_modalities(self, features_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The logits by text alone and by pictures alone."""
        text_NC, picture_NC = (self.scale * part_NA @ self.classes_CA.T for part_NA in self._parts(features_NK))
        return text_NC, picture_NC

    def joint(self, features_NK: Tensor) -> Tensor:
        """t + v, [N, A]."""
        text_NA, picture_NA = self._parts(features_NK)
        return text_NA + picture_NA

    def _parts(self, features_NK: Tensor) -> list[Tensor]:
        parts = zip(features_NK.split(self.widths, 1), self.projections, self.read_M, strict=True)
        return [read * x_NK.ne(0).any(1, keepdim=True) * projection(x_NK) for x_NK, projection, read in parts]


def class_features(prompts_TCA: Tensor) -> Tensor:
    """The unit mean over T templates of unit features, [C, A]."""
    return F.normalize(prompts_TCA.mean(0), dim=-1)
