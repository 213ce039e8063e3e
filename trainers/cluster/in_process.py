"""Trains a prepared recipe with one worker in this process: what Ray Train's worker runs, without its processes.

The run's folder gets the same files. Checkpoints are written between two steps; which of them there are is read from the
folder, so that a process that was killed leaves nothing else to go on from.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.files import read_json
from trainers.cluster.driver import ended_with, require_not_stopped, worker_config
from trainers.cluster.journal_callback import JournalCallback
from trainers.cluster.monitor import Listener
from trainers.failures import RunFailed
from trainers.journal.journal import EpochRecord, Journal
from trainers.journal.outcome import Outcome, choose_epoch_of
from trainers.loop.floor import labels_by_floor
from trainers.preflight.disk import retention
from trainers.preflight.preparation import Prepared, claim
from trainers.worker.session import Write
from trainers.worker.training import train_worker


@dataclass(frozen=True)
class Written:
    """A checkpoint in a run's folder. step: over all epochs. epoch: None if it is from within one."""

    step: int
    epoch: int | None
    folder: Path


def written_checkpoints(run: Path) -> list[Written]:
    """Those of a run's folder, the newest last. One whose state cannot be read counts as the oldest."""
    found = []
    for folder in run.glob("checkpoint_*"):
        state: dict[str, Any] = {}
        with contextlib.suppress(InputError):
            state = read_json(folder / "state" / "training.json")
        within = state.get("values", {}).get("steps_done", 0) > 0
        found.append(Written(state.get("step", -1), None if within else state.get("epoch"), folder))
    return sorted(found, key=lambda one: (one.step, one.folder.name))


def outcome_of(prepared: Prepared, *, floor: bool) -> Outcome:
    """The outcome of a run whose epochs are done, from its folder.

    Args:
        floor: whether the floor may be chosen.

    Raises:
        RunFailed: no epoch has a checkpoint.
        InputError: a checkpoint is damaged.
    """
    kept = {one.epoch: one.folder for one in written_checkpoints(prepared.folder) if one.epoch is not None}
    records = Journal(str(prepared.folder / "journal")).read()
    return choose_epoch_of(prepared.name, prepared.folder, prepared.card, prepared.corpus, records, kept, floor)


class InProcessSession:
    """A trainers.worker.session.Session whose driver is this process.

    Args:
        cpus: how many it may use: a thread each.
        listener: gets the messages, at once.
        stop: asks the training to end.
        keep: how many checkpoints stay, those with the best scores; the newest stays beside them. None: all.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        prepared: Prepared,
        device: torch.device,
        cpus: float,
        listener: Listener,
        stop: threading.Event,
        keep: int | None,
    ) -> None:
        self.run, self.device = str(prepared.folder), device
        self.cpus = cpus
        self._listener, self._stop, self._keep = listener, stop, keep
        self._journal = JournalCallback(listener.journal.folder)

    def post(self, kind: str, content: Any) -> None:
        self._listener.take(kind, content)

    def tell(self, kind: str, content: Any) -> None:
        self._listener.take(kind, content)

    def is_over(self) -> bool:
        return self._listener.fatal is not None or self._listener.out_of_memory is not None

    def beat(self, epoch: int, step: int) -> bool:
        return True

    def answer(self) -> tuple[bool, int] | None:
        return self._stop.is_set(), 0

    def wait_for_reports(self) -> None:
        pass

    def report(self, content: dict[str, Any], write: Write | None) -> None:
        """The journal first: an epoch whose checkpoint is missing is trained again, one without a record would be lost."""
        assert write is not None
        self._journal.after_report(None, [content], None)
        name = f"checkpoint_{content['step']:08d}"
        shutil.rmtree(Path(self.run) / name, ignore_errors=True)  # a damaged one, from before which training went on
        write(name)
        self._remove_others()
        self._listener.take_records()

    def checkpoints(self) -> list[str]:
        return [str(one.folder) for one in reversed(written_checkpoints(Path(self.run)))]

    def _remove_others(self) -> None:
        """What `checkpoint.keep` and `checkpoint.max_disk` leave no room for."""
        if self._keep is None:
            return
        records = {record.epoch: record for record in self._listener.journal.read()}

        def score(one: Written) -> float:
            record = records.get(one.epoch or 0)
            return record.metrics.get("selection/score", float("-inf")) if record else float("-inf")

        *others, _newest = written_checkpoints(Path(self.run))
        for one in sorted(others, key=lambda one: (score(one), one.step))[: len(others) + 1 - self._keep]:
            shutil.rmtree(one.folder, ignore_errors=True)


def train_in_process(
    prepared: Prepared,
    device: torch.device,
    cpus: float = 1.0,
    *,
    on_step: Callable[[dict[str, Any]], None] = lambda content: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    stop: threading.Event | None = None,
    floor: bool = True,
) -> Outcome:
    """Train in this process to the end; see trainers.cluster.driver.train. `encoders.features` are trained on, in a folder of
    runs, and not in an object store. Ray is not needed.

    Args:
        cpus: how many the training may use: a thread each.

    Raises:
        RunFailed: training ended without a model.
        RunStopped: `stop` was set.
    """
    recipe, stop = prepared.recipe, stop or threading.Event()
    assert recipe.encoders.features is not None and prepared.store is None
    claim(prepared)
    listener = Listener(
        None,
        Journal(str(prepared.folder / "journal")),
        on_step=on_step,
        on_epoch=on_epoch,
        on_floor=lambda metrics: None,
        stop=stop,
        run_folder=prepared.folder,
        trace=None,
    )
    keep = retention(recipe, prepared.checkpoint_bytes, prepared.frozen_bytes).num_to_keep
    session = InProcessSession(prepared, device, cpus, listener, stop, keep)
    config = worker_config(prepared, floor=floor or labels_by_floor(recipe))
    left = recipe.cluster.max_failures
    with ended_with(listener, prepared):
        while True:
            try:
                train_worker(config, session)
                break
            except Exception as error:
                if session.is_over():
                    break
                said = f"{prepared.name} failed ({type(error).__name__}: {first_line(error)})"
                if left == 0:
                    raise RunFailed(f"{said}; {prepared.folder / 'logs'} says where") from error
                left -= 1
                print(f"note: {said}, it goes on from its last checkpoint", file=sys.stderr, flush=True)
    require_not_stopped(prepared.name, listener, stop)
    return outcome_of(prepared, floor=floor)
