"""Values of options, for recipes too: this file needs no torch, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

Modalities = Literal["both", "text", "pictures"]
ENCODERS_READ: dict[Modalities, tuple[str, ...]] = {
    "both": ("text", "picture"),
    "text": ("text",),
    "pictures": ("picture",),
}
Adversary = Literal["m2can", "dann", "cdan", "mdan"]
