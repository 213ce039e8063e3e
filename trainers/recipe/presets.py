"""Presets: what differs from the models' defaults."""

from __future__ import annotations

from typing import Any

from trainers.recipe.overrides import put

# What `recommended` leaves to trainers.recipe.training_rule.
DECIDED_BY_RULE = (
    *(f"optimizer.lr.{part}" for part in ("encoders", "projections", "fusion", "heads")),
    *(f"optimizer.lr.discriminators_{kind}" for kind in ("source", "target")),
    "train.epochs",
    "uacr.warmup",
    "uacr.update",
)

PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "data": {"texts": {"cleaning": "published", "max_tokens": 200}, "pictures": {"resize": 256, "crop": 224}},
        "encoders": {
            "text": {"pooling": "pooler"},
            "picture": {"weights": "IMAGENET1K_V1", "batch_norm": "per_sample", "head": "identity_linear"},
        },
    },
    # What helped in benchmarks/comparison.py and choose_preset.py; SAM, which doubles a step's cost, did not.
    "recommended": {
        "uacr": {"threshold": 0.8, "prior": "auto"},
        "sam": {"rho": 0.0},
        "train": {"precision": "auto"},
        "checkpoint": {"keep": 10},  # a small data set may train for a hundred epochs
    },
}
for _key in DECIDED_BY_RULE:
    put(PRESETS["recommended"], _key, None)
