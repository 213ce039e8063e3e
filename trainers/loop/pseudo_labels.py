"""Pseudo labels of the target (UACR): selected from an epoch's scores, used in the next one, part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Part
from datasets_manifest.stream.plan import DomainPool
from trainers.m2can.pseudo_labels import select, selection_rate, uniform_prior
from trainers.recipe.base import decided
from trainers.recipe.method_sections import Uacr

_PRIOR = "class_shares"


class PseudoLabels:
    """The target rows that have a pseudo label in the next epoch, the same on every worker.

    Args:
        uacr: start, growth, threshold and class shares of the selection.
        target: the target's training rows.
        classes: names, for metrics.

    rows: row numbers in the table, ascending. labels: their classes. found_prior: the class shares that were estimated for
    `uacr.prior: auto`, [C]; None: there are none.
    """

    def __init__(self, uacr: Uacr, target: Part, classes: Sequence[str]) -> None:
        self.uacr, self.target, self.classes = uacr, target, classes
        self.rows = np.empty(0, np.int64)
        self.labels = np.empty(0, np.int64)
        self.found_prior: np.ndarray | None = None

    def update(self, epoch: int, columns: Mapping[str, np.ndarray], true_N: np.ndarray) -> dict[str, float]:
        """Select anew after an epoch.

        Args:
            epoch: number of epochs completed.
            columns: label, prob and variance of each of the target's training rows (scoring.Scored.votes).
            true_N: their labels, -1 where there is none: for the metrics alone.

        Returns:
            metrics by name.
        """
        since = epoch - decided(self.uacr.warmup)  # epochs since the end of the warm-up
        rate = selection_rate(since, self.uacr.start, decided(self.uacr.update)) if since >= 0 else 0.0
        prior = self.prior()
        score_N = columns["prob"] * np.exp(-columns["variance"])
        selected = select(columns["label"], score_N, rate, prior, self.uacr.threshold)
        self.rows, self.labels = selected + self.target.start, columns["label"][selected].astype(np.int64)
        shares = {f"uacr/prior/{name}": float(share) for name, share in zip(self.classes, prior, strict=True)}
        return {"uacr/rate": rate} | shares | self._metrics(columns["label"], selected, true_N)

    def selects_after(self, epoch: int) -> bool:
        """Whether so many completed epochs are the warm-up or more: what `update` selects then follows from the scores."""
        return epoch >= decided(self.uacr.warmup)

    def prior(self) -> np.ndarray:
        """The class shares that quotas follow, [C]."""
        given = self.uacr.prior
        if isinstance(given, list):
            return np.array(given) / sum(given)
        return uniform_prior(len(self.classes)) if self.found_prior is None else self.found_prior

    def pools(self) -> list[DomainPool]:
        """The target's rows of the next epoch: one pool, or none while there are no pseudo labels."""
        return [DomainPool(self.rows, self.labels)] if len(self.rows) else []

    def state_dict(self) -> dict[str, Tensor]:
        """Under the names that checkpoints have had since version 1."""
        found = {} if self.found_prior is None else {_PRIOR: torch.from_numpy(self.found_prior)}
        return {"kept_rows": torch.from_numpy(self.rows), "kept_labels": torch.from_numpy(self.labels), **found}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rows, self.labels = state["kept_rows"].numpy(), state["kept_labels"].numpy()
        self.found_prior = state[_PRIOR].numpy() if _PRIOR in state else None

    def _metrics(self, label_N: np.ndarray, selected: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
        """How many were selected, their classes and, for reports only, how many are right where the target has labels."""
        metrics = {"uacr/kept": float(len(selected)), "uacr/kept_share": len(selected) / len(true_N)}
        if len(selected):
            shares = np.bincount(label_N[selected], minlength=len(self.classes)) / len(selected)
            metrics |= {f"uacr/class_share/{name}": float(s) for name, s in zip(self.classes, shares, strict=True)}
        known_N, right_N = true_N >= 0, label_N == true_N
        if known_N.any():
            metrics["uacr/accuracy"] = float(right_N[known_N].mean())
            if known_N[selected].any():
                metrics["uacr/precision"] = float(right_N[selected][known_N[selected]].mean())
        return metrics
