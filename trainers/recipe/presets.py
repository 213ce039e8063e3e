"""Presets: what differs from the models' defaults."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "data": {"texts": {"cleaning": "published"}},
        "encoders": {
            "text": {"pooling": "pooler"},
            "picture": {"weights": "IMAGENET1K_V1", "batch_norm": "per_sample", "head": "identity_linear"},
        },
    },
    # What helped on both data sets of benchmarks/comparison.py; SAM, which doubles a step's cost, did not.
    "recommended": {
        "uacr": {"warmup": 3, "update": 0.1, "threshold": 0.8},
        "sam": {"rho": 0.0},
        "train": {"precision": "auto"},
    },
}
