"""Values of options, for recipes too: this file needs no torch, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

Modalities = Literal["both", "text", "pictures"]
Pairs = Literal["all", "target", "merged"]
Seen = Literal["joint", "features"]
SourceWeights = Literal["uniform", "proximity", "hardest"]
ScoreOf = Literal["both", "prob", "uncertainty"]
Refinement = Literal["none", "fused", "modalities", "cross", "centroids"]
