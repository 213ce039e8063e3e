"""Which rows an epoch draws and scores, and their batches on the device."""

from __future__ import annotations

import numpy as np
import torch

from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.records.target_labels import TargetLabels
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from datasets_manifest.stream.plan import DomainPool, EpochPlan, EvalPlan, StepSlice
from datasets_manifest.stream.source import BatchSource
from trainers.compute.device_batches import Fed, make_encoding, step_batches, unlabelled
from trainers.compute.feed import Feed
from trainers.compute.precision import dtype_of, eval_batch_size, picture_form
from trainers.loop.pseudo_labels import PseudoLabels
from trainers.model.card import ModelCard

GIVEN_SHARE = 0.25  # of the target's draws: records whose labels were given


def with_given(pool: DomainPool, given: TargetLabels) -> DomainPool:
    """The target's pool with given labels in the place of pseudo labels, drawn so often that they make GIVEN_SHARE of it."""
    others = ~np.isin(np.asarray(pool.rows), given.rows)
    if not len(given.rows):
        return pool
    times = max(1, round(GIVEN_SHARE / (1 - GIVEN_SHARE) * others.sum() / len(given.rows)))
    rows = np.concatenate([np.asarray(pool.rows)[others], np.tile(given.rows, times)])
    return DomainPool(rows, np.concatenate([pool.labels[others], np.tile(given.labels, times)]))


class Batches:
    """Plans and batches of one worker.

    Args:
        card: the recipe and what the data are.
        corpus: its parts; its table may be empty.
        labels: of all rows of the table, -1 where unlabelled.
        source: gives the batches.
        pseudo_labels: those that there are now.
        device: where the batches go.
    """

    def __init__(
        self,
        card: ModelCard,
        corpus: Corpus,
        labels: np.ndarray,
        source: BatchSource,
        pseudo_labels: PseudoLabels,
        device: torch.device,
    ) -> None:
        self.card, self.recipe, self.corpus, self.labels = card, card.recipe, corpus, labels
        self.source, self.pseudo_labels, self.device = source, pseudo_labels, device
        self.samples_per_epoch = self.recipe.data.samples_per_epoch or max(len(p) for p in corpus.train[:-1])
        self.dtype, self.pictures = dtype_of(self.recipe), picture_form(self.recipe, device)

    def plan(self, epoch: int, samples: int | None = None, batch_size: int | None = None) -> EpochPlan:
        """The steps of an epoch with the pseudo labels that there are now. samples, batch_size: in place of the recipe's."""
        return EpochPlan.build(
            seed=self.recipe.train.seed,
            epoch=epoch,
            pools=self._pools(),
            samples_per_epoch=samples or self.samples_per_epoch,
            batch_size=batch_size or self.recipe.train.batch_size,
        )

    def _pools(self) -> list[DomainPool]:
        """The rows of each domain that steps are drawn from."""
        recipe, target = self.recipe, self.corpus.train[-1]
        pools = [self._pool(part) for part in self.corpus.train[:-1]]
        of_target = self.pseudo_labels.pools() if recipe.uacr.enabled else []
        if recipe.train.target_labels == "oracle":
            of_target = [self._pool(target)]
        elif not of_target and (
            self.corpus.given is not None or (recipe.target_takes_part and not recipe.uacr.enabled)
        ):
            unlabelled = np.broadcast_to(np.int8(-1), len(target))  # of whatever length, it takes no memory
            of_target = [DomainPool(range(target.start, target.stop), unlabelled)]
        if self.corpus.given is not None:
            of_target = [with_given(pool, self.corpus.given) for pool in of_target]
        return pools + of_target

    def _pool(self, part: Part) -> DomainPool:
        return DomainPool(range(part.start, part.stop), self.labels[part.start : part.stop])

    def train(self, slices: list[StepSlice], epoch: int = 0) -> Feed[Fed]:
        """The batches of `slices`, with the views of an epoch."""
        encoding = make_encoding(self.recipe, self.card.vocabulary, epoch=epoch, strong=True)
        hosts = self.source.train(slices, encoding)
        share = self.recipe.network.modality_dropout
        dropout = (self.recipe.train.seed, share) if share else None
        return Feed(step_batches(slices, hosts, self.device, self.dtype, self.pictures, dropout), self.device)

    def eval_plan(self) -> tuple[list[Part], EvalPlan]:
        """What is scored after an epoch: the target's training part, all validation parts, and the plan of their rows."""
        parts = [self.corpus.train[-1], *(part for part in self.corpus.val if part is not None)]
        rows = np.concatenate([part.rows for part in parts])
        return parts, EvalPlan(rows, eval_batch_size(self.recipe, self.device))

    def evaluate(self, rows: list[np.ndarray], again: int | None = None) -> Feed[Fed]:
        """Batches of rows to be scored, with their weak views.

        Args:
            again: how many of them, from the first on, will be asked for again; None: all.
        """
        encoding = make_encoding(self.recipe, self.card.vocabulary)
        if isinstance(self.source, EvaluationCache):
            hosts = self.source.evaluate(rows, encoding, again)
        else:
            hosts = self.source.evaluate(rows, encoding)
        return Feed(unlabelled(hosts, self.device, self.dtype, self.pictures), self.device)
