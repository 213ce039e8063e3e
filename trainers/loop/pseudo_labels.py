"""From what was seen of the target to the labels that UACR selects from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.manifest.corpus import Part
from trainers.m2can.batch import Outputs
from trainers.m2can.calibration import find_temperature, sharpen
from trainers.m2can.collective import Collective
from trainers.m2can.neighbourhood import TargetView, balance, refine
from trainers.m2can.network import FUSED, PROJECTED
from trainers.m2can.pseudo_labels import estimate_prior, score_of, uniform_prior
from trainers.recipe.method_sections import Uacr
from trainers.validators import ValidatorInputs


class TargetCollector:
    """Takes the outputs of the target's training rows, batch by batch; afterwards every worker holds them all.

    Args:
        target: the target's training part.
        num_classes: C.
        features: whether features and single-modality predictions are wanted too.
    """

    def __init__(self, target: Part, num_classes: int, features: bool) -> None:
        self.target, self.features = target, features
        self.widths = [num_classes] + ([num_classes, num_classes, FUSED, PROJECTED, PROJECTED] if features else [])
        self._seen = torch.zeros(len(target), sum(self.widths))

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        """Keep what is wanted of a batch of one view and one domain."""
        inside = torch.from_numpy((rows >= self.target.start) & (rows < self.target.stop))
        columns = [outputs.fused_logits_DBC[0].softmax(-1)]
        if self.features:
            columns += [outputs.text_logits_DBC[0].softmax(-1), outputs.picture_logits_DBC[0].softmax(-1)]
            columns += [outputs.fused_DBK[0], outputs.text_VDBK[0, 0], outputs.picture_VDBK[0, 0]]
        at = torch.as_tensor(rows - self.target.start)[inside]
        self._seen[at] = torch.cat(columns, 1).float().cpu()[inside]

    def finish(self, collective: Collective, device: torch.device) -> TargetView:
        """Exchange with the other workers."""
        parts = collective.sum_(self._seen.to(device)).cpu().split(self.widths, 1)
        empty = [torch.empty(len(self.target), 0)] * (6 - len(parts))
        return TargetView(*parts, *empty)


@dataclass(frozen=True)
class PseudoLabels:
    """Of every training row of the target, the same on every worker.

    label_N, score_N: what is selected from. probs_NC: soft labels; None where nothing needs them.
    """

    label_N: np.ndarray
    score_N: np.ndarray
    probs_NC: np.ndarray | None


def needs_view(uacr: Uacr) -> bool:
    """Whether the whole target's predictions are needed, beside each row's own label and score."""
    return uacr.enabled and (
        uacr.labels == "soft" or uacr.refine != "none" or uacr.balance or uacr.prior == "estimated"
    )


def pseudo_labels(
    uacr: Uacr, columns: dict[str, np.ndarray], view: TargetView | None, prior_C: np.ndarray, collective: Collective
) -> PseudoLabels:
    """The rows' own predictions, refined and balanced as the recipe says.

    Args:
        columns: label, prob and variance of the target's rows (scoring.Scored.of).
        view: needed as `needs_view` says.
        prior_C: class shares that `balance` brings about.
    """
    variance_N = columns["variance"]
    if view is None or (uacr.refine == "none" and not uacr.balance):
        probs_NC = None if view is None else view.probs_NC.numpy()
        return PseudoLabels(columns["label"], score_of(uacr.score, columns["prob"], variance_N), probs_NC)
    probs_NC = _agreed(view, uacr, prior_C, collective).numpy()
    score_N = score_of(uacr.score, probs_NC.max(1), variance_N)
    return PseudoLabels(probs_NC.argmax(1), score_N, probs_NC)


def estimated_prior(view: TargetView, evidence: ValidatorInputs, taught: Sequence[np.ndarray]) -> np.ndarray:
    """The target's class shares from calibrated predictions, [C].

    Args:
        evidence: whose labelled source rows say how sure the predictions should be.
        taught: labels of each source, -1 where there is none; each source was drawn equally often.
    """
    temperature = find_temperature(evidence.source_probs_MC, evidence.source_labels_M)
    # One more of each: a class that no source shows still has a place.
    counts = [np.bincount(labels[labels >= 0], minlength=view.probs_NC.shape[1]) + 1 for labels in taught]
    shares = np.mean([count / count.sum() for count in counts], axis=0)
    return estimate_prior(sharpen(view.probs_NC.numpy(), temperature), shares)


def class_prior(uacr: Uacr, estimated: np.ndarray, num_classes: int) -> np.ndarray:
    """The class shares that quotas follow, [C]."""
    if isinstance(uacr.prior, list):
        return np.array(uacr.prior) / sum(uacr.prior)
    return estimated if uacr.prior == "estimated" and len(estimated) else uniform_prior(num_classes)


def selection_metrics(
    pseudo: PseudoLabels, kept: np.ndarray, true_N: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """How many were kept, their classes and, for reports only, how many are right where the target has labels."""
    metrics = {"uacr/kept": float(len(kept)), "uacr/kept_share": len(kept) / len(true_N)}
    counts = np.bincount(pseudo.label_N[kept], minlength=len(classes))
    if len(kept):
        shares = counts / len(kept)
        metrics |= {f"uacr/class_share/{name}": float(s) for name, s in zip(classes, shares, strict=True)}
    known_N = true_N >= 0
    right_N = pseudo.label_N == true_N
    if known_N.any():
        metrics["uacr/accuracy"] = float(right_N[known_N].mean())
        if known_N[kept].any():
            metrics["uacr/precision"] = float(right_N[kept][known_N[kept]].mean())
    return metrics


def _agreed(view: TargetView, uacr: Uacr, prior_C: np.ndarray, collective: Collective) -> Tensor:
    """One worker computes: other processors might round a similarity otherwise and take another neighbour."""
    probs_NC = torch.zeros_like(view.probs_NC)
    if collective.rank == 0:
        probs_NC = refine(uacr.refine, view, uacr.neighbours)
        if uacr.balance:
            probs_NC = balance(probs_NC, torch.from_numpy(prior_C).to(probs_NC.dtype))
    return collective.sum_(probs_NC.contiguous())
