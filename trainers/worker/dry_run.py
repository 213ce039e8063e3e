"""What the workers of `m2can train --dry-run` do: a few real steps and scored batches, measured."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from datasets_manifest.records.sharded_table import ShardedTable
from datasets_manifest.stream.evaluation_cache import EvaluationCache
from datasets_manifest.stream.plan import EpochPlan
from trainers.loop.loop import Loop
from trainers.worker.batch_sizes import GpuMemory, find_batch_sizes
from trainers.worker.log_context import LogContext
from trainers.worker.reports import memory_metrics
from trainers.worker.session import Session
from trainers.worker.slices import fullest, most_of_all
from trainers.worker.training import WorkerConfig, errors_told, held, make_loop

LEAST_STEPS, MOST_STEPS = 2, 20  # as many as fit into SECONDS, for the time's sake
SECONDS = 5.0
EVAL_BATCHES = 3


def dry_run_on_worker(given: WorkerConfig, session: Session) -> None:
    """What each Ray Train worker does; rank 0 tells the most of what any of them took."""
    with errors_told(session):
        loop = make_loop(given, LogContext(given.folder.name, session.rank), session)
        found = _measure(loop, held(given.table))
        if loop.rank == 0:
            told = found | {"workers": loop.world_size, "device": str(loop.device)}
            told |= {"precision": loop.recipe.train.precision}
            session.tell("measured", told)


def _measure(loop: Loop, table: pa.Table | ShardedTable) -> dict[str, Any]:
    target = loop.corpus.train[-1]
    # As in a late epoch, when all of the target has pseudo labels: before that a step has a domain less.
    loop.pseudo_labels.rows = target.rows
    loop.pseudo_labels.labels = np.arange(len(target)) % len(loop.corpus.classes)
    plan = loop.plan()
    batches = table.select(["images"]).to_batches()
    pictures = np.concatenate([pc.list_value_length(batch.column(0)).to_numpy() for batch in batches])
    steps = _timed_steps(loop, plan, pictures)
    batches, scored = _timed_batches(loop)
    size = _checkpoint_bytes(loop)
    seconds = {"step_s": _usual(steps), "eval_batch_s": _usual(scored)}
    memory = memory_metrics(loop.device)
    if isinstance(loop.batches.source, EvaluationCache):  # a run keeps those of all batches
        memory["memory/process_peak_mib"] += (loop.batches.source.bytes_of(batches) - loop.batches.source.bytes) / 2**20
    most = most_of_all(loop, seconds | memory | {"checkpoint_bytes": float(size)})
    found: dict[str, Any] = most | {"steps": len(steps), "steps_per_epoch": plan.num_steps, "eval_batches": batches}
    if loop.device.type == "cuda":
        tried, largest = find_batch_sizes(loop, pictures, GpuMemory(loop.device))
        found |= {"batch_sizes": [asdict(one) for one in tried], "largest_batch_size": largest}
    return found


def _timed_steps(loop: Loop, plan: EpochPlan, pictures: np.ndarray) -> list[float]:
    """Seconds of each step, its wait for data included. The first one has the samples with the most pictures."""
    numbers = itertools.islice(itertools.cycle(range(plan.num_steps)), MOST_STEPS)
    slices = [plan.worker_step(number, loop.rank, loop.world_size) for number in numbers]
    slices[0] = fullest(slices[0], plan, pictures)
    times: list[float] = []
    asked = time.perf_counter()
    with loop.batches.train(slices) as feed:
        for slice_, (_, batch) in zip(slices, feed, strict=True):
            loop.run_step(slice_, batch)
            if loop.device.type == "cuda":
                torch.cuda.synchronize(loop.device)
            times.append(time.perf_counter() - asked)
            if len(times) >= LEAST_STEPS and _all_have_enough(loop, sum(times[1:]) > SECONDS):
                break
            asked = time.perf_counter()
    loop.check()
    return times


def _all_have_enough(loop: Loop, enough: bool) -> bool:
    """All workers stop after the same step."""
    votes = loop.collective.sum_(torch.tensor([float(enough)], device=loop.device))
    return bool(votes > 0)


@torch.inference_mode()
def _timed_batches(loop: Loop) -> tuple[int, list[float]]:
    """How many batches this worker scores after an epoch, and the seconds that some of them took."""
    batches = list(loop.batches.eval_plan()[1].worker_batches(loop.rank, loop.world_size))
    loop.network.eval()
    times: list[float] = []
    asked = time.perf_counter()
    with loop.batches.evaluate(batches[:EVAL_BATCHES]) as feed:
        for _, batch in feed:
            with loop.autocast():
                loop.network(batch).logits_HQDBC.sum().item()
            times.append(time.perf_counter() - asked)
            asked = time.perf_counter()
    loop.network.train()
    return len(batches), times


def _usual(times: list[float]) -> float:
    """Mean without the first, which waits for the pipeline and the kernels."""
    later = times[1:] or times
    return sum(later) / len(later) if later else 0.0


def _checkpoint_bytes(loop: Loop) -> int:
    """Of a real checkpoint, which is removed again; its evaluation is not there yet, and frozen weights lie beside it."""
    state = loop.state()
    if loop.rank != 0:
        return 0
    with tempfile.TemporaryDirectory(prefix="m2can-") as folder:
        checkpoint = Path(folder) / "checkpoint"
        loop.save(checkpoint, {}, state)
        return sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
