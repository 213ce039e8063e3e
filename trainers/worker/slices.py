"""Rows and numbers of a measurement that all workers make together."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from datasets_manifest.stream.plan import EpochPlan, StepSlice
from trainers.loop.loop import Loop


def fullest(slice_: StepSlice, plan: EpochPlan, pictures: np.ndarray) -> StepSlice:
    """The slice with each domain's samples of the most pictures in place of its own."""
    rows = [np.unique(rows) for rows in plan.rows_DN]
    order = [own[np.argsort(-pictures[own], kind="stable")] for own in rows]
    width = slice_.rows_DB.shape[1]
    return dataclasses.replace(slice_, rows_DB=np.stack([np.resize(own[:width], width) for own in order]))


def most_of_all(loop: Loop, values: dict[str, float]) -> dict[str, float]:
    """The largest of each value over the workers."""
    table = torch.zeros(loop.world_size, len(values), dtype=torch.float64, device=loop.device)
    table[loop.rank] = torch.tensor(list(values.values()), dtype=torch.float64)
    return dict(zip(values, loop.collective.sum_(table).amax(0).tolist(), strict=True))
