"""The training loop, one worker's view: plan → stream → step → score → select. Knows torch, and neither Ray nor MLflow.

Everything random is named by (seed, epoch, row, position) or (seed, epoch, step, rank), so a loop that is given back its
state goes on as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_manifest.records.corpus import Corpus
from datasets_manifest.stream.plan import EpochPlan, StepSlice
from datasets_manifest.stream.source import BatchSource
from trainers.compute.compiled import compile_encoders
from trainers.compute.device_batches import Fed
from trainers.compute.feed import Feed
from trainers.compute.precision import autocast_of, choose_kernels, choose_layout, dtype_of
from trainers.encoders.weight_files import FrozenWeights
from trainers.loop.bad_pictures import BadPictures
from trainers.loop.batches import Batches
from trainers.loop.floor_labels import FloorLabels
from trainers.loop.observer import Observer
from trainers.loop.patience import Patience
from trainers.loop.pseudo_labels import PseudoLabels
from trainers.loop.scoring import Scored, score_epoch, validation_metrics
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.network import M2CAN
from trainers.model import checkpoint
from trainers.model.build import build_network, build_objective
from trainers.model.card import ModelCard
from trainers.model.checkpoint import Snapshot, TrainingState
from trainers.model.optimizers import build_schedule
from trainers.model.trained_parts import build_trained_parts
from trainers.recipe.base import decided
from trainers.step.finite_check import NonFiniteLoss, Passes
from trainers.step.gradients import data_parallel
from trainers.step.loss_scale import LossScale
from trainers.step.step import Step
from trainers.step.step_clock import StepClock
from trainers.validators import epoch_score


class Loop:
    """Network, optimizers and the state that moves from epoch to epoch.

    Args:
        card: the recipe and what the data are.
        corpus: its parts; its table may be empty.
        labels: of all rows of the table, -1 where unlabelled. The target's reach metrics only.
        source: gives the batches.
        collective: exchange with the other workers.
        device: where the network lives.
        observer: its methods are called as training goes on.
    """

    def __init__(
        self,
        card: ModelCard,
        corpus: Corpus,
        labels: np.ndarray,
        source: BatchSource,
        collective: Collective,
        device: torch.device,
        observer: Observer,
    ) -> None:
        self.card, self.recipe, self.corpus = card, card.recipe, corpus
        self.collective, self.device, self.observer = collective, device, observer
        self.rank, self.world_size = collective.rank, collective.world_size
        self.dtype = dtype_of(self.recipe)
        self.autocast = autocast_of(self.recipe, device)
        self.epochs = decided(self.recipe.train.epochs)
        self.epoch = 0  # epochs completed
        warmup = decided(self.recipe.uacr.warmup) if self.recipe.uses_pseudo_labels else 0
        self.patience = Patience(self.recipe.train.patience, warmup)
        self.pseudo_labels = PseudoLabels(self.recipe.uacr, corpus.train[-1], corpus.classes)
        self.batches = Batches(card, corpus, labels, source, self.pseudo_labels, device)
        self.steps_per_epoch = -(-self.batches.samples_per_epoch // self.recipe.train.batch_size)
        max_bad_fraction = self.recipe.data.max_bad_fraction
        self.bad_pictures = BadPictures(corpus, len(labels), max_bad_fraction, collective, device)
        self.steps_done = 0  # of the running epoch
        # Rows of the last two steps, by number: whether a step was finite is known one step later.
        self._slices: dict[int, StepSlice] = {}
        self.totals: dict[str, torch.Tensor] = {}  # sums of its terms over those steps
        self.floor_labels: FloorLabels | None = None  # see trainers.loop.floor.start_from_floor
        self._compiles = self.recipe.train.compile  # in the first step
        self._next: tuple[EpochPlan, Feed[Fed]] | None = None  # of the next epoch, asked for before it begins
        self._build()

    def _build(self) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.train.seed)
        self.network = self.make_network().to(self.device, self.dtype).train()
        choose_kernels(recipe, self.device)
        choose_layout(self.network, recipe, self.device)
        if recipe.train.compile:
            compile_encoders(self.network, self.device)
        self.frozen = FrozenWeights(self.network)
        self.parts = build_trained_parts(recipe, self.network)
        self.step = Step(
            network=self.network,
            model=data_parallel(self.network, self.collective),
            discriminators=self.parts.discriminators,
            objective=build_objective(recipe),
            optimizer=self.parts.optimizers["network"],
            discriminator_optimizer=self.parts.optimizers["discriminators"],
            schedule=build_schedule(recipe.schedule, self.epochs, self.steps_per_epoch),
            rho=recipe.sam.rho,
            collective=self.collective,
            autocast=self.autocast,
            parts=recipe.train.accumulate,
            loss_scale=LossScale() if recipe.train.precision == "fp16" else None,
        )

    def make_network(self) -> M2CAN:
        """With the weights that it begins with."""
        card, num_classes = self.card, len(self.corpus.classes)
        return build_network(
            card.recipe, card.text_config, num_classes, load_weights=True, pictures=card.picture_config
        )

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, or too many epochs had no better score (`train.patience`)."""
        return self.epoch >= self.epochs or self.patience.is_over(self.epoch)

    def run_epoch(self) -> tuple[dict[str, float], Scored]:
        """One epoch: its metrics, and the scores from which the next one's pseudo labels were selected.

        Raises:
            NonFiniteLoss: on every worker; the optimizers did not move by that step.
            InputError: on every worker: too many pictures of a domain cannot be read.
        """
        started = time.perf_counter()
        plan, feed = self._next or (self.plan(), None)
        self._next = None
        with feed or self._feed_of(plan) as fed:
            metrics, waited_s = self._train_epoch(plan, fed)
        trained = time.perf_counter()
        if not self._next_plan_needs_scores():
            self._ask_for(self.plan(ahead=1))
        scored = self.score()
        metrics |= self.select_pseudo_labels(scored)
        score = epoch_score(self.recipe.selection.validator, scored.validator_inputs)
        self.epoch, self.steps_done, self.totals = self.epoch + 1, 0, {}
        self.patience.add(self.epoch, score, self.collective, self.device)
        self.ask_for_steps()
        metrics |= validation_metrics(scored, self.corpus, self.batches.labels) | {"selection/score": score}
        metrics["data/bad_records"] = self.bad_pictures.require_few()
        ended = time.perf_counter()
        metrics["time/train_s"], metrics["time/score_s"] = trained - started, ended - trained
        metrics["speed/data_wait_fraction"] = (waited_s + scored.waited_s) / (ended - started)
        return metrics, scored

    def close(self) -> None:
        """Let go of the next epoch's batches. All else is left to the garbage collector."""
        if self._next is not None:
            self._next[1].close()
            self._next = None

    def state(self) -> TrainingState:
        """The training state beside weights and optimizers. All workers call it together.

        Raises:
            NonFiniteLoss: see `check`.
        """
        self.check()
        arrays = self.pseudo_labels.state_dict() | self.bad_pictures.state_dict()
        arrays |= {f"totals.{name}": total for name, total in self.totals.items()}
        rows = {part.domain: len(part) for part in self.corpus.train}  # whose numbers pseudo labels are
        values: dict[str, Any] = {"steps_done": self.steps_done, "rows": rows}
        if self.recipe.train.precision == "fp16":
            values["loss_scale"] = vars(self.step.loss_scale)
        if self.patience.epochs is not None:
            values["patience"] = self.patience.state_dict()
        return TrainingState(epoch=self.epoch, step=self.step.number, arrays=arrays, values=values)

    def snapshot(self, evaluation: dict[str, torch.Tensor], state: TrainingState | None = None) -> Snapshot:
        """A checkpoint of this moment, to be written by `Snapshot.write`; steps may follow meanwhile.

        With several workers one of them writes, given everyone's `state`.
        """
        return checkpoint.snapshot(self.parts, self.frozen, self.card, state or self.state(), evaluation)

    def save(self, folder: Path, evaluation: dict[str, torch.Tensor], state: TrainingState | None = None) -> None:
        """Write a checkpoint now; see Snapshot.write."""
        self.snapshot(evaluation, state).write(folder)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint, of an epoch's end or from between two steps; see checkpoint.load.

        The number of workers may be another one.
        """
        self.close()
        self.step.forget()
        state = checkpoint.load(folder, self.parts)
        self.frozen.were_loaded(folder / "model")
        self.epoch, self.step.number, self.steps_done = state.epoch, state.step, state.values["steps_done"]
        self.patience.load_state_dict(state.values.get("patience", {}))
        self.pseudo_labels.load_state_dict(state.arrays)
        self.bad_pictures.load_state_dict(state.arrays)
        if self.recipe.train.precision == "fp16" and "loss_scale" in state.values:
            self.step.loss_scale = LossScale(**state.values["loss_scale"])
        named = [(name.removeprefix("totals."), x) for name, x in state.arrays.items() if name.startswith("totals.")]
        self.totals = {name: total.to(self.device) for name, total in named}

    def plan(self, ahead: int = 0) -> EpochPlan:
        """The plan of the running epoch, or of so many epochs later with the pseudo labels that there are now."""
        return self.batches.plan(self.epoch + ahead)

    def _next_plan_needs_scores(self) -> bool:
        return self.recipe.uses_pseudo_labels and self.pseudo_labels.selects_after(self.epoch + 1)

    def ask_for_steps(self) -> None:
        """Have the first batches of the running epoch made, ahead of `run_epoch`."""
        if self._next is None and not self.is_over:
            self._ask_for(self.plan())

    def _ask_for(self, plan: EpochPlan) -> None:
        """The first batches of the next epoch are made while this one is scored and its checkpoint written."""
        if plan.epoch < self.epochs:
            self._next = plan, self._feed_of(plan)

    def _feed_of(self, plan: EpochPlan) -> Feed[Fed]:
        """The batches of an epoch's steps that are still to be done."""
        first = self.steps_done if plan.epoch == self.epoch else 0
        return self.batches.train(list(plan.worker_steps(self.rank, self.world_size, first)), plan.epoch)

    def _train_epoch(self, plan: EpochPlan, feed: Feed[Fed]) -> tuple[dict[str, float], float]:
        """The steps of an epoch that are still to be done: metrics, and the seconds for which the device lacked data."""
        slices = list(plan.worker_steps(self.rank, self.world_size, self.steps_done))
        clock = StepClock(self.device)
        started, waited = time.perf_counter(), 0.0
        for slice_, (host, batch) in zip(slices, feed, strict=True):
            self.bad_pictures.add(host.bad)
            self.observer.bad_pictures(host.bad)
            with clock.step(feed.waited - waited):
                passes = self.run_step(slice_, batch)
            waited = feed.waited
            for name, value in passes["second"].items():
                self.totals[name] = self.totals.get(name, 0) + value
            self.steps_done += 1
            self.observer.step(slice_, plan, passes)
            if self.steps_done < plan.num_steps:
                self.observer.between_steps(self)
        self.check()
        waited, busy = clock.waited(), clock.gpu_busy()
        seconds = time.perf_counter() - started
        metrics = {
            f"loss/{name}" if name != "grad_norm" else name: float(value) / plan.num_steps
            for name, value in self.totals.items()
        }
        groups = [group for optimizer in self.parts.optimizers.values() for group in optimizer.param_groups]
        metrics |= {f"lr/{group['name']}": group["lr"] for group in groups}
        if busy is not None:
            metrics["speed/gpu_busy_fraction"] = busy / seconds
        metrics["speed/steps_per_s"] = len(slices) / seconds
        metrics["speed/samples_per_s"] = plan.num_domains * sum(s.global_batch for s in slices) / seconds
        return metrics, waited

    def run_step(self, slice_: StepSlice, batch: Batch) -> Passes:
        """One optimisation step on the rows of `slice_`.

        Raises:
            NonFiniteLoss: on every worker, of this step or the one before.
        """
        self._seed(slice_.step)
        number = self.step.number
        self._slices = {n: rows for n, rows in self._slices.items() if n == number - 1} | {number: slice_}
        started = time.perf_counter()
        with self._failure_told():
            passes = self.step(batch)
        if self._compiles:
            self._compiles = False
            self.observer.compiled(time.perf_counter() - started)
        return passes

    def check(self) -> None:
        """Wait for the last step. Raises NonFiniteLoss: on every worker; see Step."""
        with self._failure_told():
            self.step.check()

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteLoss as error:
            self.observer.not_finite(self._slices[error.number])
            raise

    def _seed(self, step: int) -> None:
        """Dropout draws from what names the step and the rank: there is no generator to carry along."""
        sequence = np.random.SeedSequence([self.recipe.train.seed, self.epoch, step, self.rank])
        seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
        # torch.manual_seed would keep each call with its stack, where CUDA has not begun.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def score(self, floor: FloorLabels | None = None) -> Scored:
        """Predictions for the rows of `Batches.eval_plan`, by the network, or by floor and network together."""
        floor = floor or self.floor_labels
        return score_epoch(self.batches, self.network, self.collective, self.autocast, floor)

    def select_pseudo_labels(self, scored: Scored) -> dict[str, float]:
        """UACR after an epoch; its metrics."""
        if not self.recipe.uses_pseudo_labels:
            return {}
        target = self.corpus.train[-1]
        return self.pseudo_labels.update(
            self.epoch + 1, scored.votes(target), self.batches.labels[target.start : target.stop]
        )
