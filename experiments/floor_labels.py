"""Pseudo labels that begin with the floor's, and later come from floor and network together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.stream.plan import StepSlice
from experiments.terms import task_of_soft_labels
from trainers.loop import pseudo_labels as module
from trainers.loop.floor import find_floor
from trainers.loop.loop import Loop
from trainers.loop.scoring import Scored
from trainers.m2can.losses import task
from trainers.m2can.losses.inputs import TermInputs
from trainers.m2can.pseudo_labels import select
from trainers.recipe.base import decided
from trainers.validators import ValidatorInputs
from trainers.validators.floor import as_sure_as

SHARPER = 0.5  # temperature of the floor's own first labels
KEPT = 0.5  # of each class's quota, whatever the threshold


class FloorLabels:
    """The state of one loop. soft: all rows of the target are taught by the probabilities of floor and network, in equal parts;
    else the floor labels the target until the warm-up is over, and then the network alone does."""

    def __init__(self, loop: Loop, soft: bool) -> None:
        self.loop, self.soft = loop, soft
        found = find_floor(loop)
        assert found is not None
        self.floor = ValidatorInputs.from_arrays({name: x.numpy() for name, x in found.evaluation.items()})
        probs_NC = self.floor.target_probs_NC ** (1 / SHARPER)
        self._take(probs_NC / probs_NC.sum(1, keepdims=True), np.zeros(len(probs_NC)), 0)

    def select(self, scored: Scored) -> dict[str, float]:
        """In the place of Loop.select_pseudo_labels."""
        loop, target = self.loop, self.loop.corpus.train[-1]
        if not self.soft:
            if loop.epoch + 1 < decided(loop.recipe.uacr.warmup):
                return {}  # those from before the first epoch stay
            true_N = loop.batches.labels[target.start : target.stop]
            return loop.pseudo_labels.update(loop.epoch + 1, scored.of(target), true_N)
        of_floor_NC = as_sure_as(self.floor, scored.validator_inputs).target_probs_NC
        both_NC = np.sqrt(of_floor_NC.clip(1e-12) * scored.validator_inputs.target_probs_NC.clip(1e-12))
        return self._take(both_NC / both_NC.sum(1, keepdims=True), scored.of(target)["variance"], loop.epoch + 1)

    def soft_labels(self, slice_: StepSlice) -> Tensor | None:
        """[B, C] of a step's rows of the target; None: it has none, or hard ones."""
        if not self.soft or len(slice_.rows_DB) == self.loop.corpus.num_sources:
            return None
        place = slice_.rows_DB[-1] - self.loop.corpus.train[-1].start
        return torch.from_numpy(self.soft_NC[place]).to(self.loop.device, self.loop.dtype)

    def _take(self, probs_NC: np.ndarray, variance_N: np.ndarray, epoch: int) -> dict[str, float]:
        loop, target = self.loop, self.loop.corpus.train[-1]
        labels = loop.pseudo_labels
        columns = {"label": probs_NC.argmax(1), "prob": probs_NC.max(1), "variance": variance_N}
        self.soft_NC = probs_NC.astype(np.float32)
        true_N = loop.batches.labels[target.start : target.stop]
        with _part_kept():
            metrics = labels.update(epoch + decided(labels.uacr.warmup), columns, true_N)
        if self.soft:
            labels.rows, labels.labels = target.rows, columns["label"].astype(np.int64)
        return metrics


@contextmanager
def _part_kept() -> Iterator[None]:
    """The best KEPT of each class's quota stays, whatever the threshold says."""

    def kept(
        label_N: np.ndarray, score_N: np.ndarray, rate: float, prior_C: np.ndarray, threshold: float
    ) -> np.ndarray:
        sure = select(label_N, score_N, rate, prior_C, threshold)
        return np.union1d(sure, select(label_N, score_N, rate * KEPT, prior_C, 0.0))

    with patch.object(module, "select", kept):
        yield


@contextmanager
def floor_labels(soft: bool) -> Iterator[None]:
    """Loops that are made in this context have such pseudo labels; see FloorLabels."""
    build, run_step, plain_task = Loop._build, Loop.run_step, task.term
    states: dict[int, FloorLabels] = {}  # by loop
    of_step: list[Tensor | None] = [None]  # soft labels

    def built(loop: Loop) -> None:
        build(loop)
        states[id(loop)] = FloorLabels(loop, soft)

    def stepped(loop: Loop, slice_: StepSlice, batch: object) -> object:
        of_step[0] = states[id(loop)].soft_labels(slice_)
        return run_step(loop, slice_, batch)  # type: ignore[arg-type]

    def chosen(loop: Loop, scored: Scored) -> dict[str, float]:
        return states[id(loop)].select(scored)

    def task_term(inputs: TermInputs) -> Tensor:
        return plain_task(inputs) if of_step[0] is None else task_of_soft_labels(inputs, of_step[0])

    with ExitStack() as stack:
        stack.enter_context(patch.object(Loop, "_build", built))
        stack.enter_context(patch.object(Loop, "run_step", stepped))
        stack.enter_context(patch.object(Loop, "select_pseudo_labels", chosen))
        stack.enter_context(patch.object(task, "term", task_term))
        yield
