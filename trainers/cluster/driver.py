"""Runs a prepared recipe's workers with Ray Train, to the chosen checkpoint."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from datasets_manifest.disk import cannot_write
from datasets_manifest.errors import InputError, first_line
from trainers.cluster.cluster_watch import ASKED_EVERY_S, LostCluster, ended_by_ray, watch_cluster
from trainers.cluster.journal_callback import JournalCallback
from trainers.cluster.monitor import Listener, start_monitor
from trainers.cluster.ray_compat import watch_restarts
from trainers.cluster.resources import worker_resources
from trainers.cluster.restarts import Restarts
from trainers.cluster.session_cleaner import keep_logs
from trainers.cluster.waiting import lacking
from trainers.encoders.weight_files import FROZEN
from trainers.failures import RunFailed, RunStopped
from trainers.journal.journal import EpochRecord, Journal
from trainers.journal.outcome import Outcome, choose_epoch_of, floor_alone
from trainers.loop.floor import has_floor, labels_by_floor
from trainers.model.card import EVALUATION, FLOOR, ZERO_SHOT
from trainers.model.floor_files import floor_metrics
from trainers.preflight.disk import retention
from trainers.preflight.features import read_features
from trainers.preflight.memory_hints import ended_by_memory, hints
from trainers.preflight.preparation import Prepared, claim
from trainers.preflight.run_lock import driver_lock
from trainers.preflight.store_lock import store_lock
from trainers.store.run_store import store_told
from trainers.worker.entrypoint import floor_worker, train_worker
from trainers.worker.training import WorkerConfig


@contextlib.contextmanager
def run_lock(prepared: Prepared, cpu_fraction: float | None = 1.0) -> Iterator[None]:
    """Hold the run's folder as this command's alone; it is made after the cluster was found good. Ray must be running.

    Args:
        cpu_fraction: part of the cluster's CPUs that its workers may take, 0 to 1; None: it has none.

    Raises:
        InputError: the cluster lacks what the recipe asks for, or another command works on the run.
    """
    if cpu_fraction is not None:
        worker_resources(prepared.recipe, cpu_fraction)

    def on_wait(words: str) -> None:
        print(f"note: {words}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as locks:
        locks.enter_context(driver_lock(prepared.folder, on_wait=on_wait))
        if prepared.store is not None:
            locks.enter_context(store_lock(prepared.store, on_wait))
        yield


def in_object_store(prepared: Prepared) -> Prepared:
    """The same with its table in Ray's object store, which the corpus reads, too: this process holds no copy of its own."""
    table = ray.put(prepared.corpus.table)
    return replace(prepared, corpus=replace(prepared.corpus, table=ray.get(table)), table=table)


def train(
    prepared: Prepared,
    *,
    on_step: Callable[[dict[str, Any]], None] = lambda content: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_floor: Callable[[dict[str, float]], None] = lambda metrics: None,
    trace: Path | None = None,
    profile: bool = False,
    stop: threading.Event | None = None,
    cpu_fraction: float = 1.0,
    floor: bool = True,
) -> Outcome:
    """Run the workers to the end. Ray must be running.

    Args:
        cpu_fraction: part of the cluster's CPUs that this run may take, 0 to 1.
        profile: write a profile of a few steps of the first worker to the run's folder, `profile/`.
        stop: once it is set, the workers leave a checkpoint between two steps and the run ends.
        floor: whether a floor is found first, if the recipe's runs have one, and may be chosen. One that gives the first pseudo
            labels is found in any case.

    Raises:
        InputError: the cluster lacks what the recipe asks for.
        RunFailed: training ended without a model.
        RunStopped: `stop` was set.
    """
    claim(prepared)
    trainer, listener = start_workers(
        prepared,
        train_worker,
        restarts=prepared.recipe.cluster.max_failures,
        on_step=on_step,
        on_epoch=on_epoch,
        on_floor=on_floor,
        trace=trace,
        profile=profile,
        stop=stop,
        cpu_fraction=cpu_fraction,
        floor=floor or labels_by_floor(prepared.recipe),
    )
    with ended_with(listener, prepared), listener:
        result = fit(trainer, listener, prepared.recipe.cluster.grace_s)
    if result is None:
        raise RunStopped(f"{prepared.name}: stopped while no worker ran; run.name={prepared.name} goes on")
    require_not_stopped(prepared.name, listener, stop)
    kept = {int(m["epoch"]): Path(found.path) for found, m in result.best_checkpoints if not m.get("partial")}
    store = prepared.store
    if store is not None:
        kept = {epoch: store.folder / path.name for epoch, path in kept.items()}
        with store_told(store):
            store.bring_part(FLOOR, ZERO_SHOT, *(f"{path.name}/{EVALUATION}" for path in kept.values()))
    outcome = choose_epoch_of(
        prepared.name, prepared.folder, prepared.card, prepared.corpus, listener.journal.read(), kept, floor=floor
    )
    if store is not None:
        with store_told(store):
            store.bring_checkpoint(outcome.checkpoint.name, FROZEN)
    return outcome


def require_not_stopped(name: str, listener: Listener, stop: threading.Event | None) -> None:
    """Raises RunStopped: the run was asked to stop."""
    if listener.stopped is not None:
        raise RunStopped(
            f"{name}: stopped in epoch {listener.stopped['epoch']} after step {listener.stopped['step']}; "
            f"run.name={name} goes on from there"
        )
    if stop is not None and stop.is_set():
        raise RunStopped(f"{name}: stopped after the last epoch; run.name={name} goes on with its report")


def find_floor(
    prepared: Prepared,
    *,
    on_floor: Callable[[dict[str, float]], None] = lambda metrics: None,
    stop: threading.Event | None = None,
    cpu_fraction: float = 1.0,
) -> Outcome:
    """Find the floor alone, whatever the recipe trains: the outcome of a run without epochs. Ray must be running.

    Raises:
        InputError: the cluster lacks what the recipe asks for, or the recipe goes on with a trained run.
        RunFailed: there is no floor.
        RunStopped: `stop` was set.
    """
    if prepared.start is not None and prepared.start.epoch is not None:
        wanted = f"{prepared.start.checkpoint.parent / 'best'}, for its weights alone"
        raise InputError(
            "is a run that was trained", field="train.start_from", value=prepared.start.name, wanted=wanted
        )
    claim(prepared)
    restarts = prepared.recipe.cluster.max_failures
    trainer, listener = start_workers(
        prepared, floor_worker, restarts=restarts, on_floor=on_floor, stop=stop, cpu_fraction=cpu_fraction
    )
    with ended_with(listener, prepared), listener:
        fit(trainer, listener, prepared.recipe.cluster.grace_s)
    if stop is not None and stop.is_set():
        raise RunStopped(f"{prepared.name}: stopped; the same command finds the floor")
    if prepared.store is not None:
        with store_told(prepared.store):
            prepared.store.bring_part(FLOOR, ZERO_SHOT, FROZEN)
    metrics = floor_metrics(prepared.folder)
    if metrics is None:
        raise RunFailed(f"{prepared.name} found no floor; {prepared.folder / 'logs'} says what the workers did")
    outcome = floor_alone(prepared.name, prepared.folder, prepared.card, prepared.corpus, metrics)
    file = listener.journal.append(outcome.last)
    if prepared.store is not None:
        with store_told(prepared.store):
            prepared.store.put(file, f"{file.parent.name}/{file.name}")
    return outcome


def fit(trainer: TorchTrainer, listener: Listener, grace_s: float) -> ray.train.Result | None:
    """Run the workers to the end, in a thread: in the main thread Ray Train would take Ctrl-C from the command.

    None: they were asked to stop before they ran; the thread still waits for them. Where no command handles Ctrl-C, as in a
    notebook, the workers are asked to stop and have `grace_s` seconds for it.

    Raises:
        RunFailed: Ray itself died: its head, its raylet or Ray Train's controller.
    """
    done: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="m2can-fit").start()
    watches = watch_cluster()
    try:
        while not wait([done], timeout=ASKED_EVERY_S).done:
            for watch in watches:
                watch.look()
            if listener.stops_without_workers:
                return None
        return done.result()
    except (LostCluster, RayError) as error:
        why = str(error) if isinstance(error, LostCluster) else f"Ray ended the run ({first_line(error)})"
        raise ended_by_ray(why) from error
    except KeyboardInterrupt:
        listener.ask_to_stop()
        wait([done], timeout=grace_s)
        raise


def start_workers(
    prepared: Prepared,
    worker: Callable[[dict[str, Any]], None],
    *,
    restarts: int,
    on_step: Callable[[dict[str, Any]], None] = lambda content: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_floor: Callable[[dict[str, float]], None] = lambda metrics: None,
    trace: Path | None = None,
    profile: bool = False,
    stop: threading.Event | None = None,
    cpu_fraction: float = 1.0,
    floor: bool = False,
) -> tuple[TorchTrainer, Listener]:
    """The trainer whose `fit` runs `worker` on the recipe's workers, and what listens to them meanwhile.

    Raises:
        InputError: the cluster lacks what the recipe asks for.
    """
    recipe = prepared.recipe
    scaling = worker_resources(recipe, cpu_fraction)
    journal = Journal(str(prepared.folder / "journal"))
    monitor = start_monitor()
    config = worker_config(prepared, monitor, cpu_fraction, floor=floor, trace=trace is not None, profile=profile)
    storage_filesystem, storage_path = None, str(prepared.folder.parent)
    if prepared.store is not None:
        storage_filesystem, storage_path = prepared.store.parent.filesystem()
    observer = Restarts(monitor, None if recipe.cluster.cpus_per_worker else cpu_fraction, restarts)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"worker": ray.put(config), "streams": config.features is None},
        torch_config=TorchConfig(timeout_s=int(recipe.cluster.timeout_s)),
        scaling_config=scaling,
        run_config=RunConfig(
            name=prepared.name,
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=FailureConfig(max_failures=restarts),
            checkpoint_config=retention(recipe, prepared.checkpoint_bytes, prepared.frozen_bytes),
            callbacks=[JournalCallback(journal.folder, prepared.store), *watch_restarts(observer)],
        ),
    )
    listener = Listener(
        monitor,
        journal,
        on_step=on_step,
        on_epoch=on_epoch,
        on_floor=on_floor,
        stop=stop or threading.Event(),
        run_folder=prepared.folder,
        trace=trace,
        lacking=lambda: lacking(recipe.cluster.fewest_workers, scaling.resources_per_worker or {}),
    )
    return trainer, listener


def worker_config(
    prepared: Prepared,
    monitor: Any = None,
    cpu_fraction: float = 1.0,
    *,
    floor: bool,
    trace: bool = False,
    profile: bool = False,
) -> WorkerConfig:
    """What every worker gets.

    Args:
        monitor: see WorkerConfig; with one, the table and the features go through the object store.
        floor: whether a floor is found first, if the recipe's runs have one.

    Raises:
        InputError: the features of `encoders.features` or the weights to start from are damaged.
    """
    recipe, start = prepared.recipe, prepared.start
    hand_over = ray.put if monitor is not None else lambda given: given
    features = None
    if recipe.encoders.features is not None:
        features = hand_over(read_features(recipe, prepared.corpus, prepared.card.vocabulary))
    return WorkerConfig(
        card=prepared.card,
        corpus=replace(prepared.corpus, table=prepared.corpus.table.slice(0, 0)),
        table=prepared.table or hand_over(prepared.corpus.table),
        cpu_part=cpu_fraction,
        monitor=monitor,
        trace=trace,
        profile=profile,
        folder=prepared.folder,
        goes_on_from=start.checkpoint if start is not None and start.epoch is not None else None,
        weights=start.weights(prepared.taken) if start is not None and prepared.taken else {},
        features=features,
        # The encoders of a run that goes on with another were trained already.
        floor=floor and has_floor(recipe) and (start is None or start.epoch is None),
        store=prepared.store,
        goes_on_store=start.store if start is not None else None,
    )


@contextlib.contextmanager
def ended_with(listener: Listener, prepared: Prepared) -> Iterator[None]:
    """Put what ended the workers into words.

    Raises:
        RunFailed: they failed, or told the driver of something that no restart can mend.
    """
    failed: ray.train.TrainingFailedError | None = None
    try:
        yield
    except ray.train.TrainingFailedError as error:
        failed = error
        keep_logs()
    full = listener.out_of_memory or (ended_by_memory(failed) if failed is not None else None)
    if full is not None:
        raise RunFailed(hints(prepared.recipe, prepared.state_bytes, full)) from failed
    if listener.fatal is None and failed is not None and (told := cannot_write(prepared.folder, failed)) is not None:
        raise RunFailed(str(told)) from failed
    if listener.fatal is not None or failed is not None:
        raise RunFailed(listener.fatal or f"{failed}\nThe workers: {listener.where()}") from failed
