"""Pseudo labels of other kinds: smoothed over neighbours, balanced, soft, by a teacher, with an estimated prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.stream.plan import DomainPool, StepSlice
from experiments.neighbourhood import Refinement, TargetView, balance, refine
from experiments.prior import estimate_prior, find_temperature, sharpen
from experiments.teacher import follow, make_teacher
from trainers.compute.precision import eval_batch_size
from trainers.loop.loop import Loop
from trainers.loop.pseudo_labels import PseudoLabels
from trainers.loop.scoring import Scored
from trainers.m2can.network import M2CAN
from trainers.m2can.pseudo_labels import score_samples
from trainers.recipe.base import decided


@dataclass(frozen=True)
class UacrOptions:
    """What differs from the product's UACR.

    refine, neighbours: see neighbourhood.refine. balance: labels and scores follow the prior (Sinkhorn), not only the
    number selected. soft: the task term learns the probabilities. teacher: the moving average of the weights labels the
    target. score: the probability or the heads' agreement alone. align: target rows without a pseudo label take part in
    alignment and MCC. estimate: the prior is estimated, until pseudo labels take part.
    """

    refine: Refinement = "none"
    neighbours: int = 5
    balance: bool = False
    soft: bool = False
    teacher: bool = False
    decay: float = 0.99
    score: Literal["both", "prob", "uncertainty"] = "both"
    align: bool = False
    estimate: bool = False


class ExperimentalUacr:
    """The state of one loop beside its PseudoLabels."""

    def __init__(self, loop: Loop, options: UacrOptions) -> None:
        self.loop, self.options = loop, options
        self.teacher = make_teacher(loop.network) if options.teacher else None
        self.soft_NC = np.empty((0, len(loop.corpus.classes)), np.float32)  # of the rows with a pseudo label
        self.estimated: np.ndarray | None = None

    def select(self, scored: Scored) -> dict[str, float]:
        """In the place of Loop.select_pseudo_labels."""
        loop, options, target = self.loop, self.options, self.loop.corpus.train[-1]
        if not loop.recipe.uacr.enabled or loop.recipe.train.target_labels == "oracle":
            return {}
        view, columns = self._look(self.teacher or loop.network)
        if options.estimate and (loop.epoch + 1 <= decided(loop.recipe.uacr.warmup) or self.estimated is None):
            self.estimated = self._estimate(view, scored)
        if self.estimated is not None:
            prior = self.estimated
            loop.pseudo_labels.prior = lambda: prior  # type: ignore[method-assign]
        probs_NC = refine(options.refine, view, options.neighbours)
        if options.balance:
            probs_NC = balance(probs_NC, torch.from_numpy(loop.pseudo_labels.prior()).to(probs_NC.dtype))
        if options.balance or options.refine != "none":
            columns["label"], columns["prob"] = probs_NC.argmax(1).numpy(), probs_NC.amax(1).numpy()
        if options.score == "prob":
            columns["variance"] = np.zeros_like(columns["variance"])
        elif options.score == "uncertainty":
            columns["prob"] = np.ones_like(columns["prob"])
        metrics = loop.pseudo_labels.update(loop.epoch + 1, columns, loop.batches.labels[target.start : target.stop])
        self.soft_NC = probs_NC.numpy()[loop.pseudo_labels.rows - target.start]
        return metrics

    def pools(self, pseudo_labels: PseudoLabels) -> list[DomainPool]:
        """In the place of PseudoLabels.pools: all rows of the target, -1 where there is no pseudo label."""
        target = self.loop.corpus.train[-1]
        labels = np.full(len(target), -1)
        labels[pseudo_labels.rows - target.start] = pseudo_labels.labels
        return [DomainPool(target.rows, labels)]

    def soft_labels(self, slice_: StepSlice) -> Tensor | None:
        """Of the target's rows of a step, [B, C]; any distribution where a row has no pseudo label."""
        rows = self.loop.pseudo_labels.rows
        if not self.options.soft or not len(rows) or len(slice_.rows_DB) == self.loop.corpus.num_sources:
            return None
        place = np.searchsorted(rows, slice_.rows_DB[-1]).clip(max=len(rows) - 1)
        return torch.from_numpy(self.soft_NC[place]).to(self.loop.device, self.loop.dtype)

    def after_step(self) -> None:
        if self.teacher is not None:
            follow(self.teacher, self.loop.network, self.options.decay, self.loop.step.number)

    @torch.inference_mode()
    def _look(self, network: M2CAN) -> tuple[TargetView, dict[str, np.ndarray]]:
        """Everything that the network says of the target's training rows, and its scores of them."""
        loop, seen, scores = self.loop, [], []
        training = network.training
        network.eval()
        rows = loop.corpus.train[-1].rows
        batches = np.array_split(rows, -(-len(rows) // eval_batch_size(loop.recipe, loop.device)))
        with loop.batches.evaluate(batches) as feed:
            for _, batch in feed:
                with loop.autocast():
                    o = network(batch).single()
                probs = [x[0].softmax(-1) for x in (o.fused_logits_DBC, o.text_logits_DBC, o.picture_logits_DBC)]
                seen.append([*probs, o.fused_DBK[0], o.text_VDBK[0, 0], o.picture_VDBK[0, 0]])
                scores.append(score_samples(o.logits_HQDBC[:, 0, 0]))
        network.train(training)
        view = TargetView(*(torch.cat(same).float().cpu() for same in zip(*seen, strict=True)))
        names = ("label", "prob", "variance")
        return view, {name: torch.cat([getattr(s, name) for s in scores]).cpu().numpy() for name in names}

    def _estimate(self, view: TargetView, scored: Scored) -> np.ndarray:
        """The target's class shares from predictions that are calibrated on the sources, [C]."""
        evidence = scored.validator_inputs
        temperature = find_temperature(evidence.source_probs_MC, evidence.source_labels_M)
        taught = [self.loop.batches.labels[part.start : part.stop] for part in self.loop.corpus.train[:-1]]
        # One more of each: a class that no source shows still has a place.
        counts = [np.bincount(labels[labels >= 0], minlength=view.probs_NC.shape[1]) + 1 for labels in taught]
        shares = np.mean([count / count.sum() for count in counts], axis=0)
        return estimate_prior(sharpen(view.probs_NC.numpy(), temperature), shares)
