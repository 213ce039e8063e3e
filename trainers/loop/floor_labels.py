"""Pseudo labels that begin with the floor's: before the first epoch they are the floor's, then floor and network vote.

For frozen encoders, whose features stay what the floor was fitted to (`uacr.warmup: 0`).

Suffixes: H heads, N rows, C classes, K features of both modalities together, M validation rows of the sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers.encoders.weight_files import WEIGHTS, read_tensors
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.floor import FloorHead
from trainers.m2can.floor.fit import TEMPERATURE
from trainers.m2can.network import M2CAN, features_of
from trainers.model.card import EVALUATION, FLOOR
from trainers.validators import ValidatorInputs
from trainers.validators.floor import as_sure_as
from trainers.validators.inputs import PREFIX


@dataclass(frozen=True)
class FloorLabels:
    """A fitted floor that labels target rows.

    head: of the target's features. source_probs_MC: its predictions for the sources' validation rows: how sure it is.
    prior_C: the target's class shares that were estimated with it; None: none were.
    alone: whether the network has no vote, since nothing is trained yet.
    """

    head: FloorHead
    source_probs_MC: np.ndarray
    prior_C: np.ndarray | None = None
    alone: bool = False

    def with_features(self, network: M2CAN, rows: np.ndarray, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with features in the place of what the encoders read, and the floor's logits, [N, C].

        Args:
            rows: their numbers in the table.
        """
        text_NK, picture_NK = features_of(network, batch)
        joined_NK = torch.cat([text_NK, picture_NK], 1).to(self.head.mean_K)
        with torch.autocast(joined_NK.device.type, enabled=False):
            logits_NC = self.head(joined_NK)[0]
        return replace(batch, text=text_NK, text_mask=None, pictures=picture_NK, picture_owner=None), logits_NC

    def vote(self, floor_NC: Tensor, network_NC: Tensor, inputs: ValidatorInputs) -> tuple[Tensor, Tensor]:
        """Label and probability of each row by the geometric mean of both, once the floor is as sure as the network; before
        training by the floor alone.

        Args:
            floor_NC, network_NC: logits.
            inputs: the network's predictions, for the sources' validation rows too.
        """
        if self.alone:
            prob_N, label_N = (floor_NC / TEMPERATURE).softmax(1).max(1)
            return label_N, prob_N
        floor_probs_NC = floor_NC.softmax(1)
        if len(self.source_probs_MC):
            mine = replace(
                inputs, source_probs_MC=self.source_probs_MC, target_probs_NC=floor_probs_NC.cpu().double().numpy()
            )
            floor_probs_NC = torch.from_numpy(as_sure_as(mine, inputs).target_probs_NC)
        log_NC = floor_probs_NC.to(network_NC).clamp_min(1e-12).log() + network_NC.log_softmax(1)
        prob_N, label_N = (log_NC / 2).softmax(1).max(1)
        return label_N, prob_N


def make_floor_labels(
    found: np.ndarray | None, collective: Collective, head: FloorHead, rows: int
) -> FloorLabels | None:
    """The first worker's floor on every worker; None if it has none.

    Args:
        found: the floor's predictions for the sources' validation rows, on the worker that has it.
        head: that worker's holds the floor; the others' take its values.
        rows: M.
    """
    device = head.mean_K.device
    if not collective.sum_(torch.tensor([float(found is not None)], device=device)).item():
        return None
    source = torch.zeros(rows, len(head.bias_C), device=device)
    if found is not None:
        source.copy_(torch.from_numpy(found))
    values = [*head.state_dict().values(), source]
    summed = collective.sum_all([x if found is not None else torch.zeros_like(x) for x in values])
    for x, whole in zip(values, summed, strict=True):
        x.copy_(whole)
    return FloorLabels(head, source.cpu().double().numpy())


def read_floor(run: Path, head: FloorHead) -> np.ndarray | None:
    """Have the head hold the floor in a run's folder; its predictions for the sources' validation rows. None if there is none.

    Raises InputError: damaged.
    """
    folder = run / FLOOR
    if not folder.is_dir():
        return None
    tensors = read_tensors(folder / "model" / WEIGHTS)
    head.load_state_dict({name: tensors[f"floor.{name}"] for name in head.state_dict()})
    return read_tensors(folder / EVALUATION)[f"{PREFIX}source_probs_MC"].numpy()
