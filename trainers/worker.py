"""The loop that every Ray Train worker runs: plan → stream → step → score → select → report.

What happens when something dies: an epoch's checkpoint is written by rank 0 and reported by all; Ray restarts the
workers after a failure, and they go on from the last reported checkpoint with the same plan and the same views. What
no restart can mend (bad input, a loss that is not finite) ends the run on all workers and is told to the driver.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch.nn.parallel import DistributedDataParallel

from datasets_manifest.corpus import Corpus
from datasets_manifest.errors import InputError
from datasets_manifest.plan import DomainPool, EpochPlan, EvalPlan, StepSlice
from datasets_manifest.stream import Share, Stream, quiet
from trainers import checkpoint
from trainers.build import build_discriminators, build_network, build_objective, build_optimizers, build_schedule
from trainers.checkpoint import ModelCard, TrainingState
from trainers.evaluation import classification_metrics
from trainers.inputs import make_encoding, to_batch
from trainers.m2can.collective import Collective, DistributedCollective
from trainers.m2can.refinement import select, selection_rate, uniform_prior
from trainers.scoring import Scored, score_parts
from trainers.selection import infomax
from trainers.step import NonFiniteLoss, Step


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver hands to every worker. `corpus` travels without its table, which lies in the object store."""

    card: ModelCard
    corpus: Corpus
    table: ray.ObjectRef
    share: Share
    monitor: Any
    trace: bool


def train_worker(config: dict[str, WorkerConfig]) -> None:
    """Entry point of a Ray Train worker."""
    quiet()
    worker = Worker(config["worker"])
    try:
        worker.run()
    except (InputError, NonFiniteLoss) as error:
        ray.get(worker.monitor.post.remote("fatal", f"{type(error).__name__}: {error}"))


class Worker:
    """One worker's state and its loop."""

    def __init__(self, config: WorkerConfig) -> None:
        self.card, self.recipe, self.corpus = config.card, config.card.recipe, config.corpus
        self.monitor, self.trace = config.monitor, config.trace
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.collective = DistributedCollective() if self.world_size > 1 else Collective()
        self.device = ray.train.torch.get_device()
        self.dtype = torch.float64 if self.recipe.train.precision == "fp64" else torch.float32
        self.table = ray.get(config.table)
        self.labels = self.table["label"].to_numpy().astype(np.int64)
        self.stream = Stream(config.table, config.share)
        self.samples_per_epoch = self.recipe.data.samples_per_epoch or max(len(p) for p in self.corpus.train[:-1])
        self.steps_per_epoch = -(-self.samples_per_epoch // self.recipe.train.batch_size)
        self.epoch = 0
        self.kept_rows = np.empty(0, np.int64)  # target rows with a pseudo label in the next epoch
        self.kept_labels = np.empty(0, np.int64)
        self.bad_rows = np.zeros(len(self.labels), np.int64)
        self._build()
        self._resume()

    def _build(self) -> None:
        recipe, num_classes = self.recipe, len(self.corpus.classes)
        torch.manual_seed(recipe.train.seed)
        self.network = build_network(recipe, self.card.text_config, num_classes, load_weights=True)
        self.network = self.network.to(self.device, self.dtype).train()
        groups = getattr(self.network.picture_encoder, "groups", None)
        if groups is not None:
            groups.collective = self.collective
        self.discriminators = build_discriminators(self.corpus.num_sources, num_classes).to(self.device, self.dtype)
        optimizer, discriminator_optimizer = build_optimizers(self.network, self.discriminators, recipe.optimizer)
        self.optimizers = {"network": optimizer, "discriminators": discriminator_optimizer}
        model = (
            DistributedDataParallel(self.network, broadcast_buffers=False, gradient_as_bucket_view=True)
            if self.world_size > 1
            else self.network
        )
        self.step = Step(
            network=self.network,
            model=model,
            discriminators=self.discriminators,
            objective=build_objective(recipe),
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            schedule=build_schedule(recipe.schedule, recipe.train.epochs, self.steps_per_epoch),
            rho=recipe.sam.rho,
            collective=self.collective,
            autocast=nullcontext,
        )

    def _resume(self) -> None:
        last = ray.train.get_checkpoint()
        if last is None:
            return
        with last.as_directory() as folder:
            state = checkpoint.load(
                Path(folder),
                network=self.network,
                modules={"discriminators": self.discriminators},
                optimizers=self.optimizers,
            )
        self.epoch, self.step.number = state.epoch, state.step
        self.kept_rows, self.kept_labels = state.arrays["kept_rows"].numpy(), state.arrays["kept_labels"].numpy()

    def run(self) -> None:
        while self.epoch < self.recipe.train.epochs:
            started = time.perf_counter()
            metrics = self._train_epoch(self._plan())
            trained = time.perf_counter()
            scored = self._score()
            metrics |= self._select(scored) | self._evaluate(scored)
            metrics["time/train_s"], metrics["time/score_s"] = trained - started, time.perf_counter() - trained
            self._require_good_pictures(metrics)
            self.epoch += 1
            self._report(metrics, scored)

    def _plan(self) -> EpochPlan:
        recipe, target = self.recipe, self.corpus.train[-1]
        pools = [DomainPool(part.rows, self.labels[part.start : part.stop]) for part in self.corpus.train[:-1]]
        if recipe.uacr.enabled and recipe.uacr.unselected == "drop":
            if len(self.kept_rows):
                pools.append(DomainPool(self.kept_rows, self.kept_labels))
        elif recipe.target_takes_part:
            pseudo = np.full(len(target), -1)
            pseudo[self.kept_rows - target.start] = self.kept_labels
            pools.append(DomainPool(target.rows, pseudo))
        return EpochPlan.build(
            seed=recipe.train.seed,
            epoch=self.epoch,
            pools=pools,
            samples_per_epoch=self.samples_per_epoch,
            batch_size=recipe.train.batch_size,
        )

    def _train_epoch(self, plan: EpochPlan) -> dict[str, float]:
        slices = list(plan.worker_steps(self.rank, self.world_size))
        encoding = make_encoding(self.recipe, self.card.vocabulary, epoch=self.epoch, strong=True)
        totals: dict[str, torch.Tensor] = {}
        started, waited, asked = time.perf_counter(), 0.0, time.perf_counter()
        for slice_, host in zip(slices, self.stream.train(slices, encoding)):
            waited += time.perf_counter() - asked
            self.bad_rows[[row for row, _ in host.bad]] = 1
            self._tell_bad(host.bad)
            batch = to_batch(
                host,
                slice_.labels_DB,
                device=self.device,
                dtype=self.dtype,
                offset=slice_.offset,
                global_batch=slice_.global_batch,
            )
            self._seed(slice_.step)
            try:
                passes = self.step(batch)
            except NonFiniteLoss:
                self._tell_step(slice_)
                raise
            for name, value in passes["second"].items():
                totals[name] = totals.get(name, 0) + value
            self._tell_progress(slice_, plan, passes)
            asked = time.perf_counter()
        seconds = time.perf_counter() - started
        metrics = {
            f"loss/{name}" if name != "grad_norm" else name: float(value) / len(slices)
            for name, value in totals.items()
        }
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        metrics |= {f"lr/{group['name']}": group["lr"] for group in groups}
        return metrics | {
            "speed/steps_per_s": len(slices) / seconds,
            "speed/samples_per_s": plan.num_domains * self.samples_per_epoch / seconds,
            "speed/data_wait_fraction": waited / seconds,
        }

    def _seed(self, step: int) -> None:
        """Dropout draws from what names the step and the rank: there is no generator to carry along."""
        sequence = np.random.SeedSequence([self.recipe.train.seed, self.epoch, step, self.rank])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def _score(self) -> Scored:
        parts = [self.corpus.train[-1], *(part for part in self.corpus.val if part is not None)]
        plan = EvalPlan(np.concatenate([part.rows for part in parts]), self.recipe.train.eval_batch_size)
        encoding = make_encoding(self.recipe, self.card.vocabulary)
        batches = self.stream.evaluate(list(plan.worker_batches(self.rank, self.world_size)), encoding)
        return score_parts(
            batches,
            parts,
            self.network,
            self.collective,
            device=self.device,
            dtype=self.dtype,
            source_prior_C=self._source_prior() if self.recipe.uacr.prior == "estimated" else None,
        )

    def _source_prior(self) -> np.ndarray:
        labels = np.concatenate([self.labels[part.start : part.stop] for part in self.corpus.train[:-1]])
        # One more of each: a class that no source shows still has a place.
        counts = np.bincount(labels[labels >= 0], minlength=len(self.corpus.classes)) + 1
        return counts / counts.sum()

    def _select(self, scored: Scored) -> dict[str, float]:
        """UACR: the pseudo labels of the next epoch, the same on every worker."""
        if not self.recipe.uacr.enabled:
            return {}
        uacr, target = self.recipe.uacr, self.corpus.train[-1]
        columns = scored.of(target)
        rate = selection_rate(self.epoch, uacr.start, uacr.update)
        if isinstance(uacr.prior, list):
            prior = np.array(uacr.prior) / sum(uacr.prior)
        elif scored.target_prior_C is not None:
            prior = scored.target_prior_C
        else:
            prior = uniform_prior(len(self.corpus.classes))
        kept = select(columns["label"], columns["score"], rate, prior)
        self.kept_rows, self.kept_labels = kept + target.start, columns["label"][kept]
        metrics = {"uacr/rate": rate, "uacr/kept": float(len(kept)), "uacr/kept_share": len(kept) / len(target)}
        metrics |= {f"uacr/prior/{name}": float(share) for name, share in zip(self.corpus.classes, prior)}
        true = self.labels[target.start : target.stop]
        known = true >= 0
        if known.any():  # for reports only; no label of the target reaches training
            metrics["uacr/accuracy"] = float((columns["label"] == true)[known].mean())
            if known[kept].any():
                metrics["uacr/precision"] = float((columns["label"] == true)[kept][known[kept]].mean())
        return metrics

    def _evaluate(self, scored: Scored) -> dict[str, float]:
        metrics = {"selection/score": infomax(scored.target_mean_probs_C, scored.target_mean_entropy)}
        of_sources = []
        for domain, part in enumerate(self.corpus.val):
            if part is None:
                continue
            found = classification_metrics(self.labels[part.start : part.stop], scored.of(part)["label"])
            is_target = domain == self.corpus.num_sources
            name = "target/val" if is_target else f"source/{part.domain}/val"
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            if found and not is_target:
                of_sources.append(found)
        for key in ("accuracy", "macro_f1") if of_sources else ():
            metrics[f"source/val/{key}"] = float(np.mean([found[key] for found in of_sources]))
        return metrics

    def _require_good_pictures(self, metrics: dict[str, float]) -> None:
        """Raises InputError on every worker alike: too many records of a domain have pictures that cannot be read."""
        bad = self.collective.sum_(torch.from_numpy(self.bad_rows.copy()).to(self.device)).cpu().numpy() > 0
        metrics["data/bad_records"] = float(bad.sum())
        for part in self.corpus.train:
            count, limit = int(bad[part.start : part.stop].sum()), self.recipe.data.max_bad_fraction
            if count > limit * len(part):
                first = part.start + int(bad[part.start : part.stop].argmax())
                raise InputError(
                    f"{count} of {len(part)} records have a picture that cannot be read, "
                    f"first record {self.table['id'][first].as_py()}: {self.table['images'][first].as_py()}",
                    file=part.domain,
                    field=f"splits.{part.split}",
                    wanted=f"at most a part of {limit:g} (data.max_bad_fraction)",
                )

    def _report(self, metrics: dict[str, float], scored: Scored) -> None:
        """All workers meet here. Rank 0 brings the checkpoint."""
        report: dict[str, Any] = metrics | {"epoch": self.epoch, "step": self.step.number}
        if self.rank != 0:
            ray.train.report(report)
            return
        folder = Path(tempfile.mkdtemp(prefix="m2can-")) / "checkpoint"
        try:
            checkpoint.save(
                folder,
                network=self.network,
                card=self.card,
                modules={"discriminators": self.discriminators},
                optimizers=self.optimizers,
                state=TrainingState(
                    epoch=self.epoch,
                    step=self.step.number,
                    arrays={
                        "kept_rows": torch.from_numpy(self.kept_rows),
                        "kept_labels": torch.from_numpy(self.kept_labels),
                    },
                    values={},
                ),
                evaluation=self._evaluation(scored),
            )
            ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def _evaluation(self, scored: Scored) -> dict[str, torch.Tensor]:
        """What the driver draws pictures from."""
        tensors = {"kept_rows": torch.from_numpy(self.kept_rows)}
        for part in scored.parts:
            for name, column in scored.of(part).items():
                tensors[f"{part.domain}/{part.split}/{name}"] = torch.from_numpy(column)
            tensors[f"{part.domain}/{part.split}/true"] = torch.from_numpy(self.labels[part.start : part.stop])
        return tensors

    def _tell_progress(self, slice_: StepSlice, plan: EpochPlan, passes: dict[str, dict[str, torch.Tensor]]) -> None:
        now = time.monotonic()
        last_step = slice_.step + 1 == plan.num_steps
        if self.rank != 0 or not (self.trace or last_step or now - getattr(self, "_told", 0.0) > 0.5):
            return
        self._told = now
        terms = {number: {name: float(v) for name, v in values.items()} for number, values in passes.items()}
        self.monitor.post.remote(
            "step",
            {
                "epoch": self.epoch + 1,
                "step": slice_.step + 1,
                "steps": plan.num_steps,
                "samples": plan.num_domains * slice_.global_batch,
                "passes": terms,
            },
        )

    def _tell_step(self, slice_: StepSlice) -> None:
        ids = [[self.table["id"][int(row)].as_py() for row in rows] for rows in slice_.rows_DB]
        names = [part.domain for part in self.corpus.train]
        content = {"epoch": self.epoch + 1, "step": slice_.step + 1, "rank": self.rank, "ids": dict(zip(names, ids))}
        ray.get(self.monitor.post.remote("nonfinite", content))

    def _tell_bad(self, bad: list[tuple[int, str]]) -> None:
        if bad:
            self.monitor.post.remote("bad", [(self.table["id"][row].as_py(), message) for row, message in bad])
