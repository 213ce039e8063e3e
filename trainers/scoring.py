"""After an epoch: every target sample and every validation sample is scored once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.corpus import Part
from datasets_manifest.encode import HostBatch
from trainers.evidence import EvidenceCollector
from trainers.inputs import to_batch
from trainers.m2can.collective import Collective
from trainers.m2can.network import M2CAN
from trainers.m2can.refinement import estimate_prior, score_samples
from trainers.selection import Evidence

COLUMNS = ("label", "score", "prob", "variance")


@dataclass(frozen=True)
class Scored:
    """Of the rows of some parts, on every worker the same.

    columns: COLUMNS by name, [rows of all parts]; 16 bytes a row in float32.
    parts: in the order of the columns' rows.
    target_mean_probs_C, target_mean_entropy: over the target's training rows.
    target_prior_C: their class shares by expectation-maximisation, None if that was not wanted.
    evidence: what the validators read.
    """

    columns: dict[str, np.ndarray]
    parts: list[Part]
    target_mean_probs_C: np.ndarray
    target_mean_entropy: float
    target_prior_C: np.ndarray | None
    evidence: Evidence

    def of(self, part: Part) -> dict[str, np.ndarray]:
        """The columns of one part."""
        start = 0
        for other in self.parts:
            if other is part:
                return {name: column[start : start + len(part)] for name, column in self.columns.items()}
            start += len(other)
        raise KeyError(f"{part.domain}/{part.split}")


@torch.inference_mode()
def score_parts(
    batches: Iterable[HostBatch],
    parts: list[Part],
    network: M2CAN,
    collective: Collective,
    *,
    device: torch.device,
    dtype: torch.dtype,
    source_prior_C: np.ndarray | None,
    collector: EvidenceCollector,
) -> Scored:
    """Score this worker's share of the rows of `parts` and exchange the results.

    A worker keeps 16 bytes a row in float32 (and the target's probabilities if its class shares are to be estimated).

    Args:
        batches: this worker's contiguous share of the rows, in order (plan.eval_shard).
        parts: the target's training part first.
        source_prior_C: class shares of the sources' labels; None: the target's shares are not estimated.
        collector: takes what the validators read.
    """
    training = network.training
    network.eval()
    target_stop = parts[0].stop
    scored: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    probs: list[np.ndarray] = []
    sums = torch.zeros(network.num_classes + 2, dtype=torch.float64)
    for host in batches:
        labels = np.full((1, len(host.rows)), -1)
        outputs = network(to_batch(host, labels, device=device, dtype=dtype))
        collector.add(host.rows, outputs)
        logits_HBC = outputs.logits_HQDBC[:, 0, 0]
        scores = score_samples(logits_HBC)
        for name, column in scored.items():
            value = getattr(scores, name)
            column.append(value.to(torch.int32 if name == "label" else dtype).cpu())
        in_target = (host.rows >= parts[0].start) & (host.rows < target_stop)
        if in_target.any():
            probs_BC = logits_HBC.mean(0).softmax(-1).double().cpu()[torch.from_numpy(in_target)]
            entropy = torch.special.entr(probs_BC).sum()
            sums += torch.cat([probs_BC.sum(0), entropy[None], torch.tensor([float(len(probs_BC))])])
            if source_prior_C is not None:
                probs.append(probs_BC.float().numpy())
    evidence = collector.finish(collective, device)
    network.train(training)

    def total(x: np.ndarray) -> np.ndarray:
        return collective.sum_(torch.from_numpy(x.copy()).to(device)).cpu().numpy()

    mean = total(sums.numpy())
    mean = mean[:-1] / max(mean[-1], 1.0)
    prior = None
    if source_prior_C is not None:
        mine = np.concatenate(probs) if probs else np.empty((0, network.num_classes), np.float32)
        prior = estimate_prior(mine, source_prior_C, total)
    columns = gather_columns(scored, sum(map(len, parts)), collective, device=device, dtype=dtype)
    return Scored(columns, parts, mean[:-1], float(mean[-1]), prior, evidence)


def gather_columns(
    scored: dict[str, list[Tensor]], rows: int, collective: Collective, *, device: torch.device, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """All workers' rows, in rank order, a column at a time: beside the result, at most two columns are held."""
    columns = {}
    for name, mine in scored.items():
        local = torch.cat(mine) if mine else torch.empty(0, dtype=torch.int32 if name == "label" else dtype)
        mine.clear()
        columns[name] = collective.gather(local.to(device)[None, :, None], rows)[0, :, 0].cpu().numpy()
    return columns
