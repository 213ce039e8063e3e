"""Early stopping by the label-free score."""

from __future__ import annotations

import math
from typing import Any

import torch

from trainers.m2can.collective import Collective


class Patience:
    """Counts the epochs since the best score. Part of a checkpoint, so that a run that goes on stops where it would have.

    Args:
        epochs: without a better score after which the run ends; None: it goes on to its last epoch.
        warmup: epochs before the first pseudo labels. They do not count: what comes after them is another training.
    """

    def __init__(self, epochs: int | None, warmup: int) -> None:
        self.epochs, self.warmup = epochs, warmup
        self.best_score, self.best_epoch = -math.inf, 0

    def add(self, epoch: int, score: float, collective: Collective, device: torch.device) -> None:
        """Note an epoch's score. All workers take the first one's, since rounding may differ between machines."""
        if self.epochs is None:
            return
        mine = torch.tensor([score if collective.rank == 0 else 0.0], dtype=torch.float64, device=device)
        score = float(collective.sum_(mine))
        if score > self.best_score:
            self.best_score, self.best_epoch = score, epoch

    def is_over(self, epoch: int) -> bool:
        """Whether the run ends after `epoch` completed epochs."""
        return self.epochs is not None and epoch - max(self.best_epoch, self.warmup) >= self.epochs

    def state_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        if self.epochs is None or not self.best_epoch:
            return {}
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state.get("best_score", -math.inf), state.get("best_epoch", 0)
