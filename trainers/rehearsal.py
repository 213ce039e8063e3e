"""`m2can train --dry-run`: a few real steps on the recipe's workers, and what the whole run will take. Nothing stays."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch

from datasets_manifest.kept import KeptEvaluation
from datasets_manifest.plan import EpochPlan, StepSlice
from trainers.disk import evaluation_bytes, most_at_once
from trainers.entry import rehearse_worker
from trainers.inputs import make_encoding, to_batch
from trainers.logs import Place
from trainers.loop import Loop
from trainers.precision import dtype_of
from trainers.run import Prepared, RunFailed, ended_with, require_own_name, start_workers
from trainers.worker import WorkerConfig, end_for_good, make_loop, memory_metrics

LEAST_STEPS, MOST_STEPS = 2, 20  # as many as fit into SECONDS, for the time's sake
SECONDS = 5.0
EVAL_BATCHES = 3


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What was measured and what follows from it.

    workers, steps: of the rehearsal. steps_per_epoch, eval_batches: of the run, for each worker.
    memory_mib: the most that one worker held, by kind (`process`, and `gpu` where there is one).
    step_s, eval_batch_s: without the first, which warms up. epoch_s: estimated, of an epoch in which the whole target takes
    part. checkpoint_bytes: of a real checkpoint. disk_bytes: of all that lie in the run's folder at a time, at most.
    free_bytes: on that disk.
    """

    workers: int
    device: str
    steps: int
    steps_per_epoch: int
    eval_batches: int
    memory_mib: dict[str, float]
    step_s: float
    eval_batch_s: float
    epoch_s: float
    checkpoint_bytes: int
    checkpoints: int
    disk_bytes: int
    free_bytes: int


def rehearse(prepared: Prepared) -> Rehearsal:
    """Run the rehearsal. Ray must be running. The run's folder is not made.

    Raises:
        InputError: the recipe, the data, or a cluster that lacks what the recipe asks for.
        RunFailed: the steps failed.
    """
    require_own_name(prepared)
    storage = prepared.folder.parent
    made = _make_folder(storage)
    name = f".dry-run-{uuid.uuid4().hex[:12]}"
    try:
        trainer, listener = start_workers(
            dataclasses.replace(prepared, name=name, folder=storage / name), rehearse_worker, restarts=0
        )
        with ended_with(listener, prepared), listener:
            trainer.fit()
        if listener.measured is None:
            raise RunFailed("the workers ended without a measurement")
        return _estimate(prepared, listener.measured, shutil.disk_usage(storage).free)
    finally:
        shutil.rmtree(storage / name, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # another run has come
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """The folders that had to be made, innermost first."""
    missing = list(itertools.takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _estimate(prepared: Prepared, found: dict[str, Any], free: int) -> Rehearsal:
    size = int(found["checkpoint_bytes"]) + evaluation_bytes(prepared.corpus, dtype_of(prepared.recipe).itemsize)
    checkpoints = most_at_once(prepared.recipe, prepared.checkpoint_bytes)
    kinds = {"process": "memory/process_peak_mib", "gpu": "memory/gpu_peak_mib"}
    return Rehearsal(
        workers=int(found["workers"]),
        device=found["device"],
        steps=int(found["steps"]),
        steps_per_epoch=int(found["steps_per_epoch"]),
        eval_batches=int(found["eval_batches"]),
        memory_mib={kind: found[key] for kind, key in kinds.items() if key in found},
        step_s=found["step_s"],
        eval_batch_s=found["eval_batch_s"],
        epoch_s=found["steps_per_epoch"] * found["step_s"] + found["eval_batches"] * found["eval_batch_s"],
        checkpoint_bytes=size,
        checkpoints=checkpoints,
        disk_bytes=checkpoints * size,
        free_bytes=free,
    )


def rehearse_on_worker(given: WorkerConfig) -> None:
    """What each Ray Train worker does; rank 0 tells the most of what any of them took."""
    try:
        loop = make_loop(given, Place(given.folder.name, ray.train.get_context().get_world_rank()))
        found = _measure(loop, ray.get(given.table))
        if loop.rank == 0:
            told = found | {"workers": loop.world_size, "device": str(loop.device)}
            ray.get(given.monitor.post.remote("measured", told))
    except Exception as error:
        if not end_for_good(error, given):
            raise


def _measure(loop: Loop, table: pa.Table) -> dict[str, float]:
    target = loop.corpus.train[-1]
    # As in a late epoch, when all of the target has pseudo labels: before that a step has a domain less.
    loop.kept_rows, loop.kept_labels = target.rows, np.arange(len(target)) % len(loop.corpus.classes)
    loop.kept_probs = np.full((len(target), len(loop.corpus.classes)), 1 / len(loop.corpus.classes), np.float32)
    plan = loop.plan()
    steps = _timed_steps(loop, plan, pc.list_value_length(table["images"]).to_numpy())
    batches, scored = _timed_batches(loop)
    size = _checkpoint_bytes(loop)
    seconds = {"step_s": _usual(steps), "eval_batch_s": _usual(scored)}
    memory = memory_metrics(loop.device)
    if isinstance(loop.source, KeptEvaluation):  # a run keeps those of all batches
        memory["memory/process_peak_mib"] += (loop.source.bytes_of(batches) - loop.source.bytes) / 2**20
    most = _most_of_all(loop, seconds | memory | {"checkpoint_bytes": float(size)})
    return most | {"steps": len(steps), "steps_per_epoch": plan.num_steps, "eval_batches": batches}


def _timed_steps(loop: Loop, plan: EpochPlan, pictures: np.ndarray) -> list[float]:
    """Seconds of each step, its wait for data included. The first one has the samples with the most pictures."""
    numbers = itertools.islice(itertools.cycle(range(plan.num_steps)), MOST_STEPS)
    slices = [plan.worker_step(number, loop.rank, loop.world_size) for number in numbers]
    slices[0] = _fullest(slices[0], plan, pictures)
    encoding = make_encoding(loop.recipe, loop.card.vocabulary, strong=True)
    times: list[float] = []
    asked = time.perf_counter()
    for slice_, host in zip(slices, loop.source.train(slices, encoding)):
        loop.run_step(slice_, host)
        if loop.device.type == "cuda":
            torch.cuda.synchronize(loop.device)
        times.append(time.perf_counter() - asked)
        if len(times) >= LEAST_STEPS and _all_have_enough(loop, sum(times[1:]) > SECONDS):
            break
        asked = time.perf_counter()
    return times


def _all_have_enough(loop: Loop, enough: bool) -> bool:
    """All workers stop after the same step."""
    votes = loop.collective.sum_(torch.tensor([float(enough)], device=loop.device))
    return bool(votes > 0)


def _fullest(slice_: StepSlice, plan: EpochPlan, pictures: np.ndarray) -> StepSlice:
    """The slice with each domain's samples of the most pictures in place of its own."""
    rows = [np.unique(rows) for rows in plan.rows_DN]
    order = [own[np.argsort(-pictures[own], kind="stable")] for own in rows]
    width = slice_.rows_DB.shape[1]
    return dataclasses.replace(slice_, rows_DB=np.stack([np.resize(own[:width], width) for own in order]))


@torch.inference_mode()
def _timed_batches(loop: Loop) -> tuple[int, list[float]]:
    """How many batches this worker scores after an epoch, and the seconds that some of them took."""
    batches = list(loop.eval_plan()[1].worker_batches(loop.rank, loop.world_size))
    loop.network.eval()
    times: list[float] = []
    asked = time.perf_counter()
    encoding = make_encoding(loop.recipe, loop.card.vocabulary)
    for host in loop.source.evaluate(batches[:EVAL_BATCHES], encoding):
        labels = np.full((1, len(host.rows)), -1)
        loop.network(to_batch(host, labels, device=loop.device, dtype=loop.dtype)).logits_HQDBC.sum().item()
        times.append(time.perf_counter() - asked)
        asked = time.perf_counter()
    loop.network.train()
    return len(batches), times


def _usual(times: list[float]) -> float:
    """Mean without the first, which waits for the pipeline and the kernels."""
    later = times[1:] or times
    return sum(later) / len(later) if later else 0.0


def _checkpoint_bytes(loop: Loop) -> int:
    """Of a real checkpoint, which is removed again; its evaluation is not there yet."""
    state = loop.state()
    if loop.rank != 0:
        return 0
    with _scratch() as folder:
        loop.save(folder / "checkpoint", {}, state)
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="m2can-") as made:
        yield Path(made)


def _most_of_all(loop: Loop, values: dict[str, float]) -> dict[str, float]:
    """The largest of each value over the workers."""
    table = torch.zeros(loop.world_size, len(values), dtype=torch.float64, device=loop.device)
    table[loop.rank] = torch.tensor(list(values.values()), dtype=torch.float64)
    return dict(zip(values, loop.collective.sum_(table).amax(0).tolist()))
