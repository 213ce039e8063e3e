"""What a worker tells Ray Train and the driver: checkpoints, metrics, progress."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from datasets_manifest.disk import CannotWrite
from datasets_manifest.records.corpus import Corpus
from datasets_manifest.records.sharded_table import ShardedTable
from datasets_manifest.stream.plan import EpochPlan, StepSlice
from trainers.encoders.weight_files import FROZEN
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.loop.scoring import Scored
from trainers.m2can.collective import Collective
from trainers.model.reference import SourceScores
from trainers.preflight.memory_hints import process_peak
from trainers.step.finite_check import Passes
from trainers.step.profiling import StepProfile
from trainers.store.run_store import RunStore
from trainers.worker.log_context import LogContext
from trainers.worker.session import Session

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_MESSAGES = 0.5
SECONDS_BETWEEN_LINES = 30.0  # of the log, about steps
NO_SCORE = -1e9  # finite: what Ray keeps of a run for a restart goes through JSON
STEPS_BETWEEN_VOTES = 5  # an exchange each


class StopRequested(Exception):
    """The run ends between two steps; its checkpoint is reported. `epoch` and `step` (of the epoch) count from 1."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"epoch {epoch}, step {step}")
        self.epoch, self.step = epoch, step


def report(
    loop: Loop,
    metrics: dict[str, float],
    evaluation: dict[str, torch.Tensor],
    session: Session,
    store: RunStore | None = None,
) -> None:
    """Report metrics, with a checkpoint of this moment that rank 0 writes. All workers call it together.

    Rank 0 copies what moves; the copy is written whole or not at all, in Ray Train's worker by a thread of its own while
    training goes on. A checkpoint that could not be written ends the run; the one before stays. Where the run lies in an
    object store, the copy is written here and sent.
    """
    content: dict[str, Any] = metrics | {"epoch": loop.epoch, "step": loop.step.number}
    score = metrics.get("selection/score", NO_SCORE)
    content["retention"] = score if math.isfinite(score) else NO_SCORE
    state = loop.state()
    if loop.rank != 0:
        session.report(content, None)
        return
    session.wait_for_reports()  # a single copy is held in memory, and a single checkpoint written beside those on the disk
    snapshot = loop.snapshot(evaluation, state)
    step, where = loop.step.number, f"epoch {loop.epoch}"
    if loop.steps_done:
        where = f"epoch {loop.epoch + 1} after step {loop.steps_done}"

    def write(name: str) -> Path:
        folder = Path(session.run if store is None else store.folder) / name
        try:
            snapshot.write(folder)
            if store is not None:
                send_checkpoint(store, name)
        except OSError as error:
            problem = f"the checkpoint of {where} could not be written ({error}); the one before it stays"
            # A disk that is full stays full: nothing is gained by starting the workers again.
            kind = "fatal" if isinstance(error, CannotWrite) else "note"
            session.tell(kind, problem)
            raise
        _log.info("checkpoint of step %d since the run began", step)
        return folder

    session.report(content, write)


def send_checkpoint(store: RunStore, name: str) -> None:
    """Send a checkpoint of the working copy, which goes then, and frozen weights once. Raises OSError."""
    if (store.folder / FROZEN).is_file() and not store.has(FROZEN):
        store.send(FROZEN)
    store.send(name)
    shutil.rmtree(store.folder / name, ignore_errors=True)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """The most MiB this process has held since it began, and on its GPU."""
    metrics = {"memory/process_peak_mib": process_peak() / 2**20}
    if device.type == "cuda":
        metrics["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return metrics


def evaluation_tensors(loop: Loop, scored: Scored) -> dict[str, torch.Tensor]:
    """What an epoch's checkpoint holds for choosing (`evidence/…`) and for the report: `<domain>/<split>/<column>`, the
    target rows with a pseudo label (`kept_rows`), and what later records are compared with (`reference/…`)."""
    tensors = {"kept_rows": torch.from_numpy(loop.pseudo_labels.rows)}
    tensors |= {name: torch.from_numpy(array) for name, array in scored.validator_inputs.arrays().items()}
    tensors |= scored.seen.tensors() | SourceScores.of(scored.validator_inputs).tensors()
    for part in scored.parts:
        for name, column in scored.of(part).items():
            tensors[f"{part.domain}/{part.split}/{name}"] = torch.from_numpy(column)
        tensors[f"{part.domain}/{part.split}/true"] = torch.from_numpy(
            loop.batches.labels[part.start : part.stop].astype(np.int64)
        )
    return tensors


class Reporter(Observer):
    """Tells the driver a worker's progress and asks it whether the run is to stop.

    Args:
        ids: the table's column `id`.
        context: of this worker's log lines; follows the steps.
        every_steps: a checkpoint every so many steps; 0 or None for none within an epoch.
        precision: what the workers compute in.
        trace: whether rank 0 sends every step's losses, not only some.
        profile: of this worker's steps, or None.
        store: where the run lies, if not in a folder.
    """

    def __init__(
        self,
        session: Session,
        *,
        corpus: Corpus,
        ids: pa.Table | ShardedTable,
        collective: Collective,
        context: LogContext,
        every_steps: int | None,
        precision: str,
        trace: bool,
        profile: StepProfile | None,
        store: RunStore | None = None,
    ) -> None:
        self.session, self.trace, self.rank = session, trace, collective.rank
        self.collective, self.context, self.every_steps, self.profile = collective, context, every_steps, profile
        self.precision, self.store = precision, store
        self.domains, self.ids = [part.domain for part in corpus.train], ids
        self._asked_to_stop = False
        self._checkpoints_asked = self._checkpoints_made = 0  # before a node is taken away
        self._last_message = self._last_line = 0.0  # seconds

    def step(self, slice_: StepSlice, plan: EpochPlan, passes: Passes) -> None:
        now = time.monotonic()
        self.context.epoch, self.context.step = slice_.epoch + 1, slice_.step + 1
        if self.profile is not None:
            self.profile.step()
        if now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            _log.info("of %d steps; loss %.5g", plan.num_steps, float(passes["second"]["total"]))
        due = now - self._last_message > SECONDS_BETWEEN_MESSAGES or slice_.step + 1 == plan.num_steps
        if due:
            self._read_answer()
            self.session.beat(slice_.epoch + 1, slice_.step + 1)
        if self.rank != 0 or not (self.trace or due):
            self._last_message = now if due else self._last_message
            return
        self._last_message = now
        content = {
            "epoch": slice_.epoch + 1,
            "step": slice_.step + 1,
            "steps": plan.num_steps,
            "samples": plan.num_domains * slice_.global_batch,
            "precision": self.precision,
            "passes": {number: {name: float(v) for name, v in terms.items()} for number, terms in passes.items()},
        }
        self.session.post("step", content)

    def between_steps(self, loop: Loop) -> None:
        due = self.collective.world_size == 1 or loop.steps_done % STEPS_BETWEEN_VOTES == 0
        stop, save = self._vote() if due else (False, False)
        if stop or save or (self.every_steps and loop.steps_done % self.every_steps == 0):
            report(loop, {"partial": 1.0}, {}, self.session, self.store)
        if stop:
            raise StopRequested(loop.epoch + 1, loop.steps_done)

    def _vote(self) -> tuple[bool, bool]:
        """Whether any worker was asked to stop, or to write a checkpoint: all of them do so after the same step."""
        self._read_answer()
        stop, save = self._asked_to_stop, self._checkpoints_asked > self._checkpoints_made
        if self.collective.world_size > 1:
            votes = torch.tensor([float(stop), float(save)], device=self.session.device)
            stop, save = (self.collective.sum_(votes) > 0).tolist()
        self._checkpoints_made += save
        return stop, save

    def _read_answer(self) -> None:
        answer = self.session.answer()
        if answer is not None:
            self._asked_to_stop |= answer[0]
            self._checkpoints_asked = answer[1]

    def bad_pictures(self, bad: list[tuple[int, str]]) -> None:
        for row, problem in bad:
            _log.warning("record %s: %s", self._ids([row])[0], problem)
        if bad:
            ids = self._ids([row for row, _ in bad])
            self.session.post("bad", [(name, problem) for name, (_, problem) in zip(ids, bad, strict=True)])

    def _ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        names: list[str] = self.ids.take(np.asarray(rows, np.int64))["id"].to_pylist()
        return names

    def compiled(self, seconds: float) -> None:
        if self.rank == 0:
            note = f"train.compile: the encoders' blocks were compiled in the first step, which took {seconds:,.1f} s"
            self.session.post("note", note)

    def not_finite(self, slice_: StepSlice) -> None:
        ids = [self._ids(rows) for rows in slice_.rows_DB]
        content = {
            "epoch": slice_.epoch + 1,
            "step": slice_.step + 1,
            "rank": self.rank,
            "ids": dict(zip(self.domains, ids, strict=False)),  # without the target where it takes no part
        }
        self.session.tell("nonfinite", content)
