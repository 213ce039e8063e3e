"""The floor as a network: encoders as they were, and a linear map of their standardised features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.m2can.batch import Batch, Outputs
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.floor.fit import Floor
from trainers.m2can.floor.zero_shot import ZeroShotHead
from trainers.m2can.network import FUSED, M2CAN, features_of


class FloorHead(nn.Module):
    """Features of both modalities [N, K + K'] → logits [N, C], and 64 principal components of the standardised features.

    A modality that the floor does not read has weights of zero.

    Args:
        widths: K and K'. num_classes: C.
    """

    mean_K: Tensor
    deviation_K: Tensor
    weight_CK: Tensor
    bias_C: Tensor
    components_FK: Tensor

    def __init__(self, widths: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.widths, width = widths, sum(widths)
        self.register_buffer("mean_K", torch.zeros(width))
        self.register_buffer("deviation_K", torch.ones(width))
        self.register_buffer("weight_CK", torch.zeros(num_classes, width))
        self.register_buffer("bias_C", torch.zeros(num_classes))
        self.register_buffer("components_FK", torch.zeros(FUSED, width))

    @torch.no_grad()
    def take(self, floor: Floor) -> None:
        """Hold a fitted floor."""
        start = 0
        for name, width in zip(("text", "picture"), self.widths, strict=True):
            columns = slice(start, start + width)
            start += width
            if name in floor.weight:
                self.mean_K[columns] = floor.mean[name].to(self.mean_K)
                self.deviation_K[columns] = floor.deviation[name].to(self.mean_K)
                self.weight_CK[:, columns] = floor.weight[name].to(self.mean_K)
                self.components_FK[:, columns] = floor.components[name].to(self.mean_K)
        self.bias_C.copy_(floor.bias)

    def forward(self, features_NK: Tensor) -> tuple[Tensor, Tensor]:
        x_NK = (features_NK - self.mean_K) / self.deviation_K
        return x_NK @ self.weight_CK.T + self.bias_C, x_NK @ self.components_FK.T

    def of_modalities(self, features_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The logits by text alone and by pictures alone."""
        x_NK, places = (features_NK - self.mean_K) / self.deviation_K, (self.widths[0],)
        parts = zip(x_NK.tensor_split(places, 1), self.weight_CK.tensor_split(places, 1), strict=True)
        text_NC, picture_NC = (x @ weight.T + self.bias_C for x, weight in parts)
        return text_NC, picture_NC


class FloorNetwork(nn.Module):
    """Encoders and a head that was not trained above them, with the outputs of the M2CAN network. It has one head.

    Args:
        text_encoder, picture_encoder: modules with a `width`.
        head: the floor, or a zero-shot classifier.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | GivenFeatures,
        picture_encoder: PictureEncoder | GivenFeatures,
        head: FloorHead | ZeroShotHead,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.picture_encoder = picture_encoder
        self.floor = head

    def forward(self, batch: Batch) -> Outputs:
        text_NK, picture_NK = features_of(self, batch)
        device, dtype = text_NK.device.type, next(self.floor.buffers()).dtype
        if not torch.is_autocast_enabled(device):
            return self._outputs(text_NK, picture_NK, batch)
        with torch.autocast(device, enabled=False):
            return self._outputs(text_NK.to(dtype), picture_NK.to(dtype), batch)

    def _outputs(self, text_NK: Tensor, picture_NK: Tensor, batch: Batch) -> Outputs:
        shape = (batch.num_views, batch.num_domains, batch.size, -1)
        features_NK = torch.cat([text_NK, picture_NK], 1)
        logits_NC, fused_NF = self.floor(features_NK)
        of_text_NC, of_picture_NC = self.floor.of_modalities(features_NK)
        return Outputs(
            text_VDBK=F.normalize(text_NK, dim=-1).view(shape),
            picture_VDBK=F.normalize(picture_NK, dim=-1).view(shape),
            fused_DBK=fused_NF.view(shape)[0],
            logits_HQDBC=logits_NC.view(shape)[0][None, None],
            text_logits_DBC=of_text_NC.view(shape)[0],
            picture_logits_DBC=of_picture_NC.view(shape)[0],
        )


Network = M2CAN | FloorNetwork  # what predicts
