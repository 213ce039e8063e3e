"""What every Ray Train worker runs: the loop, its checkpoints and its reports.

What happens when something dies: a checkpoint (of an epoch's end, and every `checkpoint.every_steps`) is written by
rank 0 and reported by all; Ray restarts the workers after a failure, on as many nodes as are left, and they go on from
the last reported checkpoint that is whole, with the same plan and the same views. A request to stop ends the run
between two steps, with a checkpoint. What no restart can mend (bad input, a loss that is not finite) ends the run on
all workers and is told to the driver.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.heap import TRAINER_KEEPS, keep_freed_memory
from datasets_manifest.manifest.corpus import Corpus
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from datasets_manifest.stream.plan import EpochPlan, StepSlice
from datasets_manifest.stream.ray_stream import CpuBudget, Stream, quiet
from trainers.cluster.log_context import LogContext, worker_log
from trainers.cluster.memory_hints import is_out_of_memory, process_peak, where_it_ran_out
from trainers.loop.loop import Loop, Observer, Passes
from trainers.loop.profiling import StepProfile
from trainers.loop.scoring import Scored
from trainers.loop.step import NonFiniteLoss
from trainers.m2can.collective import Collective, DistributedCollective
from trainers.model.checkpoint import ModelCard
from trainers.model.precision import require_device

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_MESSAGES = 0.5
SECONDS_BETWEEN_LINES = 30.0  # of the log, about steps
SHOWN = ("loss/total", "selection/score", "speed/samples_per_s", "speed/data_wait_fraction", "memory/process_peak_mib",
         "memory/gpu_peak_mib")  # fmt: skip
NO_SCORE = -1e9  # finite: what Ray keeps of a run for a restart goes through JSON
STEPS_BETWEEN_VOTES = 5  # an exchange each


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver hands to every worker. `corpus` travels without its table, which lies in the object store."""

    card: ModelCard
    corpus: Corpus
    table: ray.ObjectRef
    share: CpuBudget
    monitor: Any
    trace: bool
    profile: bool  # a few steps of rank 0
    threads: int  # of torch, on the CPU
    folder: Path  # of the run


def train_worker(given: WorkerConfig) -> None:
    """Entry point of a Ray Train worker."""
    if ray.get(given.monitor.is_over.remote()):
        return  # Ray started the workers again, but what ended them would come again
    context = LogContext(given.folder.name, ray.train.get_context().get_world_rank())
    with worker_log(given.folder, context):
        try:
            train_to_the_end(make_loop(given, context), given.monitor)
        except Exception as error:
            _log.exception("the worker ends")
            if not end_for_good(error, given):
                raise


def train_to_the_end(loop: Loop, monitor: Any) -> None:
    """From the last checkpoint, if there is one, until the last epoch is done or the run is asked to stop."""
    resume(loop, monitor)
    try:
        while loop.epoch < loop.recipe.train.epochs:
            metrics, scored = loop.run_epoch()
            metrics |= memory_metrics(loop.device)
            _log.info(
                "epoch %d done: %s", loop.epoch, ", ".join(f"{k} {metrics[k]:.4g}" for k in SHOWN if k in metrics)
            )
            report(loop, metrics, evaluation_tensors(loop, scored), monitor)
    except StopRequested:
        _log.info("asked to stop")
        ray.get(monitor.post.remote("stopped", {"epoch": loop.epoch + 1, "step": loop.steps_done}))


def make_loop(given: WorkerConfig, context: LogContext) -> Loop:
    """This worker's loop, at the beginning of a run.

    Raises:
        InputError: the device lacks what the recipe asks for.
    """
    quiet()
    # Left alone, every worker on a node would start a thread for each of the node's cores.
    torch.set_num_threads(given.threads)
    keep_freed_memory(TRAINER_KEEPS)
    world_size = ray.train.get_context().get_world_size()
    collective = DistributedCollective() if world_size > 1 else Collective()
    table = ray.get(given.table)
    device = ray.train.torch.get_device()
    require_device(given.card.recipe, device)
    _log.info("%d workers, this one on %s of %s, process %d", world_size, device, platform.node(), os.getpid())
    return Loop(
        given.card,
        given.corpus,
        labels=table["label"].to_numpy().astype(np.int64),
        source=EvaluationCache(Stream(given.table, given.share), given.card.recipe.data.kept_views),
        collective=collective,
        device=device,
        observer=Reporter(given, table, collective, context),
    )


def end_for_good(error: Exception, given: WorkerConfig) -> bool:
    """Tell the driver about an error that no restart can mend; whether all workers have it, so that this one may return.

    Memory runs out on one worker: its error must be raised, or the others would wait for it.
    """
    if isinstance(error, InputError | NonFiniteLoss):
        ray.get(given.monitor.post.remote("fatal", f"{type(error).__name__}: {error}"))
        return True
    if is_out_of_memory(error):
        where = where_it_ran_out(error, ray.train.get_context().get_world_rank())
        ray.get(given.monitor.post.remote("memory", where))
    return False


class StopRequested(Exception):
    """The run ends between two steps; its checkpoint is reported."""


def resume(loop: Loop, monitor: Any) -> None:
    """Go on from the newest reported checkpoint that is whole, if there is any.

    Raises:
        InputError: there are checkpoints, and all of them are damaged.
    """
    last = ray.train.get_checkpoint()
    if last is None:
        return
    problems = []
    for checkpoint in [last, *earlier(last)]:
        try:
            with checkpoint.as_directory() as folder:
                loop.load(Path(folder))
                _log.info(
                    "goes on from %s, in epoch %d after step %d", checkpoint.path, loop.epoch + 1, loop.steps_done
                )
                return
        except InputError as error:
            problems.append(str(error))
            _log.warning("a checkpoint is left out: %s", error)
            monitor.post.remote("note", f"a checkpoint is left out: {error}")
    raise InputError(f"no checkpoint is whole; the newest: {problems[0]}", file=last.path)


def earlier(last: ray.train.Checkpoint) -> list[ray.train.Checkpoint]:
    """The run's other reported checkpoints, newest first."""
    known = [found.checkpoint for found in ray.train.get_all_reported_checkpoints()]
    return [found for found in reversed(known) if found.path != last.path]


def report(loop: Loop, metrics: dict[str, float], evaluation: dict[str, torch.Tensor], monitor: Any) -> None:
    """All workers meet here. Rank 0 brings the checkpoint.

    Raises:
        OSError: it could not be written or copied to the run's storage; the driver is told. The one before stays.
    """
    content: dict[str, Any] = metrics | {"epoch": loop.epoch, "step": loop.step.number}
    score = metrics.get("selection/score", NO_SCORE)
    content["retention"] = score if math.isfinite(score) else NO_SCORE
    state = loop.state()
    if loop.rank != 0:
        ray.train.report(content)
        return
    if loop.recipe.checkpoint.max_disk is not None:
        # Waits until the controller has taken the reports before this one and removed what need not stay. Workers may
        # be two reports ahead of it otherwise, each with a checkpoint on the disk.
        ray.train.get_all_reported_checkpoints()
    folder = Path(tempfile.mkdtemp(prefix="m2can-")) / "checkpoint"
    try:
        loop.save(folder, evaluation, state)
        ray.train.report(content, checkpoint=ray.train.Checkpoint.from_directory(folder))
        _log.info("checkpoint of step %d since the run began", loop.step.number)
    except OSError as error:
        where = f"epoch {loop.epoch + 1} after step {loop.steps_done}" if loop.steps_done else f"epoch {loop.epoch}"
        note = f"the checkpoint of {where} could not be written ({error}); the one before it stays"
        ray.get(monitor.post.remote("note", note))
        raise
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """The most MiB this process has held since it began, and on its GPU."""
    metrics = {"memory/process_peak_mib": process_peak() / 2**20}
    if device.type == "cuda":
        metrics["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return metrics


def evaluation_tensors(loop: Loop, scored: Scored) -> dict[str, torch.Tensor]:
    """What the driver chooses by (`evidence/…`) and draws: `<domain>/<split>/<column>` and the rows that were kept."""
    tensors = {"kept_rows": torch.from_numpy(loop.kept_rows)}
    tensors |= {name: torch.from_numpy(array) for name, array in scored.evidence.arrays().items()}
    for part in scored.parts:
        for name, column in scored.of(part).items():
            tensors[f"{part.domain}/{part.split}/{name}"] = torch.from_numpy(column)
        tensors[f"{part.domain}/{part.split}/true"] = torch.from_numpy(loop.labels[part.start : part.stop])
    return tensors


class Reporter(Observer):
    """Sends what the loop tells to the driver's monitor; rank 0 alone speaks of losses."""

    def __init__(self, config: WorkerConfig, table: pa.Table, collective: Collective, context: LogContext) -> None:
        self.monitor, self.trace, self.rank = config.monitor, config.trace, collective.rank
        self.collective = collective
        self.every_steps = config.card.recipe.checkpoint.every_steps
        self._answer: ray.ObjectRef | None = None  # whether the run is to stop, once it is there
        self._asked_to_stop = False
        self.domains = [part.domain for part in config.corpus.train]
        self.ids = table["id"]
        self._told = 0.0
        self.context = context
        self._logged = 0.0
        self.profile = StepProfile(config.folder / "profile") if config.profile and self.rank == 0 else None

    def step(self, slice_: StepSlice, plan: EpochPlan, passes: Passes) -> None:
        now = time.monotonic()
        self.context.epoch, self.context.step = slice_.epoch + 1, slice_.step + 1
        if self.profile is not None:
            self.profile.step()
        if now - self._logged > SECONDS_BETWEEN_LINES:
            self._logged = now
            _log.info("of %d steps; loss %.5g", plan.num_steps, float(passes["second"]["total"]))
        due = now - self._told > SECONDS_BETWEEN_MESSAGES or slice_.step + 1 == plan.num_steps
        if due and self._heard():
            self._answer = self.monitor.beat.remote(self.rank, slice_.epoch + 1, slice_.step + 1)
        if self.rank != 0 or not (self.trace or due):
            self._told = now if due else self._told
            return
        self._told = now
        content = {
            "epoch": slice_.epoch + 1,
            "step": slice_.step + 1,
            "steps": plan.num_steps,
            "samples": plan.num_domains * slice_.global_batch,
            "passes": {number: {name: float(v) for name, v in terms.items()} for number, terms in passes.items()},
        }
        self.monitor.post.remote("step", content)

    def between_steps(self, loop: Loop) -> None:
        stop = loop.steps_done % STEPS_BETWEEN_VOTES == 0 and self._agree_to_stop()
        if stop or (self.every_steps and loop.steps_done % self.every_steps == 0):
            report(loop, {"partial": 1.0}, {}, self.monitor)
        if stop:
            raise StopRequested

    def _agree_to_stop(self) -> bool:
        """Whether any worker was asked to stop: all of them leave after the same step."""
        self._heard()
        device = ray.train.torch.get_device()
        return bool(self.collective.sum_(torch.tensor([float(self._asked_to_stop)], device=device)) > 0)

    def _heard(self) -> bool:
        """Take the monitor's answer if it has come; whether none is awaited any more."""
        if self._answer is None:
            return True
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready:
            self._asked_to_stop |= ray.get(ready[0])
            self._answer = None
        return bool(ready)

    def bad_pictures(self, bad: list[tuple[int, str]]) -> None:
        for row, problem in bad:
            _log.warning("record %s: %s", self.ids[row].as_py(), problem)
        if bad:
            self.monitor.post.remote("bad", [(self.ids[row].as_py(), problem) for row, problem in bad])

    def not_finite(self, slice_: StepSlice) -> None:
        ids = [[self.ids[int(row)].as_py() for row in rows] for rows in slice_.rows_DB]
        content = {
            "epoch": slice_.epoch + 1,
            "step": slice_.step + 1,
            "rank": self.rank,
            "ids": dict(zip(self.domains, ids, strict=True)),
        }
        ray.get(self.monitor.post.remote("nonfinite", content))
