"""What Ray Train's controller has to import of ours: next to nothing. The method and the loop load on the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from trainers.worker.session import TrainSession
    from trainers.worker.training import WorkerConfig


def train_worker(config: dict[str, Any]) -> None:
    """Run trainers.worker.training.train_worker on the WorkerConfig that `config["worker"]` refers to.

    The process that prepares batches, where `config["streams"]` says that there is one, starts first, while this one imports
    torch and builds the network.
    """
    from datasets_manifest.stream.ray_stream import start_runner

    runner = start_runner() if config["streams"] else None
    from trainers.worker import training

    training.train_worker(*_given(config), runner)


def floor_worker(config: dict[str, Any]) -> None:
    """The same for trainers.worker.training.floor_worker."""
    from datasets_manifest.stream.ray_stream import start_runner

    runner = start_runner() if config["streams"] else None
    from trainers.worker import training

    training.floor_worker(*_given(config), runner)


def dry_run_worker(config: dict[str, Any]) -> None:
    """The same for trainers.worker.dry_run.dry_run_on_worker."""
    from trainers.worker import dry_run

    dry_run.dry_run_on_worker(*_given(config))


def _given(config: dict[str, Any]) -> tuple[WorkerConfig, TrainSession]:
    from trainers.worker.session import TrainSession

    given = ray.get(config["worker"])
    return given, TrainSession(given.monitor, given.store)
