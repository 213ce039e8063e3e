"""What every Ray Train worker runs.

What happens when something dies: a checkpoint (at an epoch's end, and every `checkpoint.every_steps`) is written by
rank 0 and reported by all; Ray restarts the workers after a failure, on as many nodes as are left, and they go on from
the last reported checkpoint that is whole, with the same plan and the same views. A request to stop ends the run
between two steps, with a checkpoint. What no restart can mend (bad input, a loss that is not finite) ends the run on
all workers and is told to the driver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.actor import ActorHandle

from datasets_manifest.errors import InputError
from datasets_manifest.features.feature_files import Features
from datasets_manifest.features.feature_stream import FeatureStream
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.records.sharded_table import ShardedTable, labels_of
from datasets_manifest.stream.cpu_budget import CpuBudget, present_nodes, share_of
from datasets_manifest.stream.encode import Allocate
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from datasets_manifest.stream.ray_stream import Stream, quiet
from datasets_manifest.stream.source import BatchSource
from trainers.compute.device_batches import picture_memory
from trainers.compute.precision import described, require_device, with_chosen_precision
from trainers.encoders.weight_files import FROZEN
from trainers.loop.loop import Loop
from trainers.loop.more_epochs import go_on_from
from trainers.m2can.collective import Collective, DistributedCollective
from trainers.model.card import FLOOR, ZERO_SHOT, ModelCard
from trainers.preflight.memory_hints import is_out_of_memory, where_it_ran_out
from trainers.step.finite_check import NonFiniteLoss
from trainers.step.profiling import StepProfile
from trainers.store.run_store import RunStore
from trainers.worker.floor import make_floor, of_first_epoch, take_floor
from trainers.worker.log_context import LogContext, log_name, worker_log
from trainers.worker.reports import Reporter, StopRequested, evaluation_tensors, memory_metrics, report
from trainers.worker.resume import resume
from trainers.worker.session import Session

_log = logging.getLogger(__name__)

LOGGED = ("loss/total", "selection/score", "speed/samples_per_s", "speed/data_wait_fraction", "speed/gpu_busy_fraction",
          "memory/process_peak_mib", "memory/gpu_peak_mib")  # fmt: skip


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver hands to every worker.

    corpus: without its rows. table: the table, or a reference of it or of its shards' index in the object store. cpu_part: of
    the cluster's CPUs that the run may take, 0 to 1. monitor: handle of a Monitor; None: the worker is in its driver's
    process. trace: whether to send every step's losses. profile: whether rank 0 profiles a few steps. folder: of the run.
    goes_on_from: the checkpoint of a finished run whose training goes on. weights: those that the network begins with in the
    place of its own. goes_on_store: the store of that finished run, if it lies in one. store: of the run, whose working copy
    `folder` is then; None: it lies in the folder. features: those that are trained on, in the table's order, or their
    reference; None: the encoders run. floor: whether the run has one.
    """

    card: ModelCard
    corpus: Corpus
    table: pa.Table | ShardedTable | ray.ObjectRef
    cpu_part: float
    monitor: Any
    trace: bool
    profile: bool
    folder: Path
    goes_on_from: Path | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    features: Features | ray.ObjectRef | None = None
    floor: bool = False
    store: RunStore | None = None
    goes_on_store: RunStore | None = None

    def here(self, rank: int) -> WorkerConfig:
        """On this machine: of a run in a store, `folder` is the working copy here, with the floor and this rank's log."""
        if self.store is None:
            return self
        self.store.bring_part(log_name(rank), *([FLOOR] if rank == 0 else []))
        return replace(self, folder=self.store.folder)

    def send(self, *names: str) -> None:
        """Send parts of the working copy to the store, if the run lies in one; what cannot be sent is told."""
        if self.store is not None:
            try:
                self.store.send(*names)
            except OSError as error:
                self.monitor.post.remote("note", f"{', '.join(names)} could not be sent to {self.store}: {error}")


def train_worker(given: WorkerConfig, session: Session, runner: ActorHandle | None = None) -> None:
    """Train from the last checkpoint, if there is one, until it is over or asked to stop.

    Args:
        runner: of this worker's data pipelines, if it was started already.
    """
    if session.is_over():
        return  # Ray restarted the workers after an error that would come again

    def work(given: WorkerConfig, loop: Loop) -> None:
        if not resume(loop, session, given.store):
            begin(loop, given)
            if given.floor:
                loop.ask_for_steps()  # the first step's batches are made meanwhile
                make_floor(loop, given.folder, session)
                if session.rank == 0:
                    given.send(FROZEN, ZERO_SHOT, FLOOR)
        if given.floor:
            take_floor(loop, given.folder, given.store)
        while not loop.is_over:
            metrics, scored = loop.run_epoch()
            metrics |= memory_metrics(loop.device)
            if given.floor:
                metrics |= of_first_epoch(loop, given.folder)
            _log.info("epoch %d done: %s", loop.epoch, _shown(metrics))
            report(loop, metrics, evaluation_tensors(loop, scored), session, given.store)
            given.send(log_name(session.rank))

    with_loop(given, session, runner, work)


def floor_worker(given: WorkerConfig, session: Session, runner: ActorHandle | None = None) -> None:
    """Find the floor and train nothing."""

    def work(given: WorkerConfig, loop: Loop) -> None:
        begin(loop, given)
        make_floor(loop, given.folder, session)
        if session.rank == 0:
            given.send(FROZEN, ZERO_SHOT, FLOOR)

    with_loop(given, session, runner, work)


def with_loop(
    given: WorkerConfig,
    session: Session,
    runner: ActorHandle | None,
    work: Callable[[WorkerConfig, Loop], None],
) -> None:
    """Make the loop and work with it, with what was given as it is on this machine; errors are logged and told."""
    given = given.here(session.rank)
    context = LogContext(given.folder.name, session.rank)
    with (
        log_sent(given, session.rank),
        worker_log(given.folder, context),
        errors_told(session),
        contextlib.closing(make_loop(given, context, session, runner)) as loop,
    ):
        work(given, loop)


@contextlib.contextmanager
def log_sent(given: WorkerConfig, rank: int) -> Iterator[None]:
    """At the end, however that comes, this worker's log is sent to the store, and what the first one profiled."""
    try:
        yield
    finally:
        given.send(log_name(rank), *(["profile"] if rank == 0 and given.profile else []))


def begin(loop: Loop, given: WorkerConfig) -> None:
    """With what `train.start_from` names."""
    if given.goes_on_from is not None:
        place = given.goes_on_from
        go_on_from(loop, given.goes_on_store.bring_checkpoint(place.name, FROZEN) if given.goes_on_store else place)
        _log.info("goes on from %s, after epoch %d", given.goes_on_from, loop.epoch)
    if given.weights:
        loop.network.load_state_dict(given.weights, strict=False)  # what a warm start does not take is left out


def make_loop(given: WorkerConfig, context: LogContext, session: Session, runner: ActorHandle | None = None) -> Loop:
    """This worker's loop, before its first step.

    Raises:
        InputError: the device lacks what the recipe asks for.
    """
    quiet()
    # Left alone, every worker on a node would start a thread for each of the node's cores.
    torch.set_num_threads(max(1, int(session.cpus)))
    device, world_size = session.device, session.world_size
    require_device(given.card.recipe, device)
    _log.info("%d workers, this one on %s of %s, process %d", world_size, device, platform.node(), os.getpid())
    collective = DistributedCollective() if world_size > 1 else Collective()
    recipe = with_chosen_precision(given.card.recipe, device, collective)
    if collective.rank == 0:
        session.post("note", f"{described(recipe, device)} (train.precision)")
    table = held(given.table)  # its numbers are mapped from shared memory, not copied
    return Loop(
        replace(given.card, recipe=recipe),
        given.corpus,
        labels=labels_of(table),
        source=make_source(given, session, runner),
        collective=collective,
        device=device,
        observer=Reporter(
            session,
            corpus=given.corpus,
            ids=table.select(["id"]),
            collective=collective,
            context=context,
            every_steps=recipe.checkpoint.every_steps,
            precision=recipe.train.precision,
            trace=given.trace,
            profile=StepProfile(given.folder / "profile") if given.profile and collective.rank == 0 else None,
            store=given.store,
        ),
    )


def make_source(given: WorkerConfig, session: Session, runner: ActorHandle | None) -> BatchSource:
    """This worker's batches: of features, where the run has them, or of views that a pipeline makes."""
    if given.features is not None:
        return FeatureStream(held(given.features))  # of another process: mapped from shared memory, not copied
    return EvaluationCache(make_stream(given, picture_memory(session.device), session, runner))


def held(given: Any) -> Any:
    """What a reference stands for, or what was given itself."""
    return ray.get(given) if isinstance(given, ray.ObjectRef) else given


def make_stream(given: WorkerConfig, allocate: Allocate, session: Session, runner: ActorHandle | None) -> Stream:
    """This worker's data, by the nodes that are there when a pipeline begins; what a batch waits for is told."""

    def tell(words: str) -> None:
        _log.warning("%s", words)
        session.post("note", words)

    def budget() -> CpuBudget:
        return share_of(present_nodes(), session.cpus, session.world_size, given.cpu_part)

    timeout_s = given.card.recipe.cluster.timeout_s
    return Stream(given.table, budget, allocate, runner, tell=tell, timeout_s=timeout_s)


@contextlib.contextmanager
def errors_told(session: Session) -> Iterator[None]:
    """Log errors and tell the driver about those that no restart can mend.

    What all workers raise alike (bad input, a loss that is not finite, a request to stop) ends here: the workers return.
    Any other error goes on, and Ray restarts the workers. Memory runs out on one worker alone: its error must go on, or
    the others would wait for it.
    """
    try:
        yield
    except StopRequested as stop:
        _log.info("asked to stop")
        session.tell("stopped", {"epoch": stop.epoch, "step": stop.step})
    except (InputError, NonFiniteLoss) as error:
        _log.exception("the worker ends")
        session.tell("fatal", f"{type(error).__name__}: {error}")
    except Exception as error:
        _log.exception("the worker ends")
        if is_out_of_memory(error):
            session.tell("memory", where_it_ran_out(error, session.rank))
        raise


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in LOGGED if name in metrics)
