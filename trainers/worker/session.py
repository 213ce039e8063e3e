"""What a worker has around it: who it is among the workers, and where its messages and checkpoints go.

Ray Train gives it that of its worker group; trainers.cluster.in_process gives it to a training in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from trainers.store.run_store import RunStore

Write = Callable[[str], Path]  # writes a checkpoint of this name, and returns its folder


class Session(Protocol):
    """rank: this worker's number, from 0. cpus: that Ray holds for it. run: the run's folder in its storage."""

    rank: int
    world_size: int
    device: torch.device
    cpus: float
    run: str

    def post(self, kind: str, content: Any) -> None:
        """Tell the driver's Listener something, without waiting."""

    def tell(self, kind: str, content: Any) -> None:
        """Tell it, and wait until it is kept: this worker may end then."""

    def is_over(self) -> bool:
        """Whether something happened that no restart can mend."""

    def beat(self, epoch: int, step: int) -> bool:
        """Say where this worker is, which asks whether it is to stop; False, and nothing is said, while an answer is due."""

    def answer(self) -> tuple[bool, int] | None:
        """Whether it is to stop, and how many checkpoints were asked for; None: no new answer has come."""

    def wait_for_reports(self) -> None:
        """Until the reports before are taken, and what need not stay of their checkpoints is removed."""

    def report(self, content: dict[str, Any], write: Write | None) -> None:
        """Report metrics; with a checkpoint, if this worker writes it. All workers call it together."""

    def checkpoints(self) -> list[str]:
        """Reported checkpoints of the run, the newest first."""


class TrainSession:
    """A worker of Ray Train's.

    Args:
        monitor: handle of a trainers.cluster.monitor.Monitor.
        store: where the run lies, if not in a folder.
    """

    def __init__(self, monitor: Any, store: RunStore | None) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.cpus = float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))
        storage = context.get_storage()
        self.run = storage.experiment_fs_path
        self._filesystem = None if store is None else storage.storage_filesystem
        self._monitor = monitor
        self._answer: ray.ObjectRef | None = None  # of the monitor, that has not come yet

    def post(self, kind: str, content: Any) -> None:
        self._monitor.post.remote(kind, content)

    def tell(self, kind: str, content: Any) -> None:
        ray.get(self._monitor.post.remote(kind, content))

    def is_over(self) -> bool:
        return bool(ray.get(self._monitor.is_over.remote()))

    def beat(self, epoch: int, step: int) -> bool:
        if self._answer is not None:
            return False
        self._answer = self._monitor.beat.remote(self.rank, epoch, step)
        return True

    def answer(self) -> tuple[bool, int] | None:
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return None
        come, self._answer = self._answer, None
        stop, checkpoints = ray.get(come)
        return stop, checkpoints

    def wait_for_reports(self) -> None:
        ray.train.get_all_reported_checkpoints()

    def report(self, content: dict[str, Any], write: Write | None) -> None:
        """A thread of Ray Train's writes the checkpoint, and the controller hears of it then."""
        if write is None:
            ray.train.report(content, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return

        def upload(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            write(name)
            return ray.train.Checkpoint(f"{self.run}/{name}", self._filesystem)

        ray.train.report(
            content,
            checkpoint=ray.train.Checkpoint(self.run, self._filesystem),  # stands for the one that `upload` makes
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )

    def checkpoints(self) -> list[str]:
        last = ray.train.get_checkpoint()
        if last is None:
            return []
        known = [found.checkpoint.path for found in ray.train.get_all_reported_checkpoints()]
        return [last.path, *(path for path in reversed(known) if path != last.path)]
