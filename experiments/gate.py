"""A fusion in which each sample weighs its text and its pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.m2can.network import PROJECTED, Fusion


class GatedFusion(Fusion):
    """The shortcuts of a sample are weighed by 2·softmax(G_t t + G_v v), which starts at 1 and 1."""

    def __init__(self, width: int = PROJECTED) -> None:
        super().__init__(width)
        self.gates = nn.ModuleList(nn.Linear(width, 2) for _ in range(2))
        for one in self.gates.parameters():
            nn.init.zeros_(one)

    def forward(self, text_VDBK: Tensor, picture_VDBK: Tensor) -> Tensor:
        u, v = self.U(text_VDBK).unsqueeze(1), self.V(picture_VDBK).unsqueeze(0)
        gate = self.gates[0](text_VDBK).unsqueeze(1) + self.gates[1](picture_VDBK).unsqueeze(0)
        gate = 2 * gate.softmax(-1)
        shortcut = self.h1(text_VDBK).unsqueeze(1) * gate[..., :1] + self.h2(picture_VDBK).unsqueeze(0) * gate[..., 1:]
        return (self.P(torch.sigmoid(u * v)) + shortcut).flatten(0, 1)
