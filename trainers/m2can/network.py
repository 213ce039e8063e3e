"""The M2CAN network: projections, MLB fusion and heads on top of two encoders."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.m2can.batch import Batch, Outputs, sent
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.names import Modalities

PROJECTED, BILINEAR, FUSED, HIDDEN = 256, 128, 64, 128


class Projection(nn.Module):
    """Linear, ReLU, L2-normalise: [..., width] → unit vectors [..., 256]."""

    def __init__(self, width: int, projected: int = PROJECTED, *, rectified: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, projected)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return F.normalize(F.relu(y) if self.rectified else y, dim=-1)


class Fusion(nn.Module):
    """MLB: f = P(sigmoid(U t ∘ V v)) + h1 t + h2 v.

    Source: Kim et al., "Hadamard Product for Low-rank Bilinear Pooling", ICLR 2017, with two shortcuts.
    """

    def __init__(self, projected: int = PROJECTED) -> None:
        super().__init__()
        self.U = nn.Linear(projected, BILINEAR)
        self.V = nn.Linear(projected, BILINEAR)
        self.P = nn.Linear(BILINEAR, FUSED)
        self.h1 = nn.Linear(projected, FUSED)
        self.h2 = nn.Linear(projected, FUSED)

    def forward(self, text_VDBK: Tensor, picture_VDBK: Tensor) -> Tensor:
        """All view pairs: → [V·V, D, B, 64]; the text's view is the slower index, so pair 0 is weak × weak."""
        u, v = self.U(text_VDBK).unsqueeze(1), self.V(picture_VDBK).unsqueeze(0)
        shortcut = self.h1(text_VDBK).unsqueeze(1) + self.h2(picture_VDBK).unsqueeze(0)
        return (self.P(torch.sigmoid(u * v)) + shortcut).flatten(0, 1)


def single_modality_head(num_classes: int, projected: int = PROJECTED) -> nn.Sequential:
    """[..., 256] → [..., C] from one modality alone."""
    return nn.Sequential(
        nn.Linear(projected, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FUSED), nn.Linear(FUSED, num_classes)
    )


class HasEncoders(Protocol):
    """A network that has encoders."""

    text_encoder: TextEncoder | GivenFeatures
    picture_encoder: PictureEncoder | GivenFeatures


def features_of(network: HasEncoders, batch: Batch) -> tuple[Tensor, Tensor]:
    """The encoders' features, [N, K] of texts and of pictures: the batch's own where it holds features."""
    if batch.holds_features:
        return batch.text, batch.pictures
    text_NK = network.text_encoder(batch.text, batch.text_mask, batch.text_lengths)
    return text_NK, network.picture_encoder(batch.pictures, batch)


class MissingModality(nn.Module):
    """A learned feature for each modality, in the place of those of a text or of pictures that are missing.

    Both start as zeros, which is what the picture encoder gives without pictures.

    Source: after Neverova et al., "ModDrop", TPAMI 2016, with a learned vector in the place of zeros.
    """

    def __init__(self, text_width: int, picture_width: int) -> None:
        super().__init__()
        self.text = nn.Parameter(torch.zeros(text_width))
        self.picture = nn.Parameter(torch.zeros(picture_width))

    def forward(self, text_NK: Tensor, picture_NK: Tensor, missing_N2: Tensor | None) -> tuple[Tensor, Tensor]:
        if missing_N2 is None:
            missing_N2 = torch.zeros(len(text_NK), 2, dtype=torch.bool)
        device = text_NK.device
        on = missing_N2 if missing_N2.device == device else sent(missing_N2.numpy(), device)
        return (
            torch.where(on[:, :1], self.text.to(text_NK.dtype), text_NK),
            torch.where(on[:, 1:], self.picture.to(picture_NK.dtype), picture_NK),
        )


class M2CAN(nn.Module):
    """Encoders, projections, fusion, S classifier heads and two single-modality heads.

    Args:
        text_encoder, picture_encoder: modules with a `width`.
        num_heads: classifier heads; the published code has one for each source.
        num_classes: C.
        aligned: width of projections that start as a dual encoder's own, which have no ReLU; None: 256, with ReLU.
        modalities: `text` and `pictures` put zeros in the place of the other modality's features: baselines.
        modality_dropout: a number: learned features take the place of what is missing; the batch says what is left out in
            training. None: features of what is missing are as the encoders give them.

    Attributes:
        similarity_scale: what a dual encoder multiplies similarities by, if the network begins as one, else None.

    Source: Zhao et al. 2025.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | GivenFeatures,
        picture_encoder: PictureEncoder | GivenFeatures,
        num_heads: int,
        num_classes: int,
        *,
        aligned: int | None = None,
        modalities: Modalities = "both",
        modality_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.picture_encoder = picture_encoder
        self.projected = aligned or PROJECTED
        rectified = aligned is None
        self.text_projection = Projection(text_encoder.width, self.projected, rectified=rectified)
        self.picture_projection = Projection(picture_encoder.width, self.projected, rectified=rectified)
        self.missing = None
        if modality_dropout is not None:
            self.missing = MissingModality(text_encoder.width, picture_encoder.width)
        self.fusion = Fusion(self.projected)
        self.heads = nn.ModuleList(nn.Linear(FUSED, num_classes) for _ in range(num_heads))
        self.text_head = single_modality_head(num_classes, self.projected)
        self.picture_head = single_modality_head(num_classes, self.projected)
        self.num_classes = num_classes
        self.modalities = modalities
        self.similarity_scale: float | None = None

    def forward(self, batch: Batch) -> Outputs:
        text_NK, picture_NK = features_of(self, batch)
        device, dtype = text_NK.device.type, self.fusion.U.weight.dtype
        if not torch.is_autocast_enabled(device):
            return self._heads_of(text_NK, picture_NK, batch)
        # What is left is small: in float32 it costs less than the casts of its weights.
        with torch.autocast(device, enabled=False):
            return self._heads_of(text_NK.to(dtype), picture_NK.to(dtype), batch)

    def _heads_of(self, text_NK: Tensor, picture_NK: Tensor, batch: Batch) -> Outputs:
        if self.missing is not None:
            text_NK, picture_NK = self.missing(text_NK, picture_NK, batch.missing_N2)
        shape = (batch.num_views, batch.num_domains, batch.size, -1)
        text_VDBK = self.text_projection(text_NK).view(shape)
        picture_VDBK = self.picture_projection(picture_NK).view(shape)
        # Products with zero keep the parameters in the graph, which data parallelism asks for.
        if self.modalities == "text":
            picture_VDBK = picture_VDBK * 0
        elif self.modalities == "pictures":
            text_VDBK = text_VDBK * 0
        fused_QDBK = self.fusion(text_VDBK, picture_VDBK)
        return Outputs(
            text_VDBK=text_VDBK,
            picture_VDBK=picture_VDBK,
            fused_DBK=fused_QDBK[0],
            logits_HQDBC=torch.stack([head(fused_QDBK) for head in self.heads]),
            text_logits_DBC=self.text_head(text_VDBK[0]),
            picture_logits_DBC=self.picture_head(picture_VDBK[0]),
        )
