"""`m2can train --dry-run`: a few real steps on the recipe's workers, and what the whole run will take. Nothing stays."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import uuid
from typing import Any

from datasets_manifest.files import made_folder
from trainers.cluster.driver import ended_with, fit, start_workers
from trainers.failures import RunFailed
from trainers.preflight.disk import evaluation_bytes, most_at_once
from trainers.preflight.preparation import Prepared
from trainers.worker.batch_sizes import Tried
from trainers.worker.entrypoint import dry_run_worker


@dataclasses.dataclass(frozen=True)
class DryRun:
    """What was measured and what follows from it.

    workers, steps: of the dry run. precision: what they computed in. steps_per_epoch, eval_batches: of the run, for each worker.
    memory_mib: the most that one worker held, by kind (`process`, and `gpu` where there is one).
    step_s, eval_batch_s: without the first, which warms up. epoch_s: estimated, of an epoch in which the whole target takes
    part. checkpoint_bytes: of a real checkpoint. frozen_bytes: of the weights that are written once. disk_bytes: of all these
    that lie in the run's folder at a time, at most. free_bytes: on that disk.
    batch_sizes: on GPUs, the values of `train.batch_size` that were tried; None on CPUs.
    largest_batch_size: that fits into the GPUs' memory, by those that were tried.
    """

    workers: int
    device: str
    precision: str
    steps: int
    steps_per_epoch: int
    eval_batches: int
    memory_mib: dict[str, float]
    step_s: float
    eval_batch_s: float
    epoch_s: float
    checkpoint_bytes: int
    frozen_bytes: int
    checkpoints: int
    disk_bytes: int
    free_bytes: int
    batch_sizes: list[Tried] | None = None
    largest_batch_size: int | None = None


def dry_run(prepared: Prepared) -> DryRun:
    """Measure a few steps on the recipe's workers. Ray must be running. The run's folder is not made.

    Raises:
        InputError: the recipe, the data, or a cluster that lacks what the recipe asks for.
        RunFailed: the steps failed.
    """
    storage = prepared.folder.parent
    name = f".dry-run-{uuid.uuid4().hex[:12]}"
    with made_folder(storage):
        try:
            tried = dataclasses.replace(prepared, name=name, folder=storage / name)
            trainer, listener = start_workers(tried, dry_run_worker, restarts=0)
            with ended_with(listener, prepared), listener:
                fit(trainer, listener, prepared.recipe.cluster.grace_s)
            if listener.measured is None:
                raise RunFailed("the dry run's workers ended before they had measured a step")
            return _estimate(prepared, listener.measured, shutil.disk_usage(storage).free)
        finally:
            shutil.rmtree(storage / name, ignore_errors=True)
            if prepared.store is not None:
                with contextlib.suppress(OSError):
                    (prepared.store.parent / name).delete()


def _estimate(prepared: Prepared, found: dict[str, Any], free: int) -> DryRun:
    size = int(found["checkpoint_bytes"]) + evaluation_bytes(prepared.recipe, prepared.corpus)
    checkpoints = most_at_once(prepared.recipe, prepared.checkpoint_bytes, prepared.frozen_bytes)
    kinds = {"process": "memory/process_peak_mib", "gpu": "memory/gpu_peak_mib"}
    return DryRun(
        workers=int(found["workers"]),
        device=found["device"],
        precision=found["precision"],
        steps=int(found["steps"]),
        steps_per_epoch=int(found["steps_per_epoch"]),
        eval_batches=int(found["eval_batches"]),
        memory_mib={kind: found[key] for kind, key in kinds.items() if key in found},
        step_s=found["step_s"],
        eval_batch_s=found["eval_batch_s"],
        epoch_s=found["steps_per_epoch"] * found["step_s"] + found["eval_batches"] * found["eval_batch_s"],
        checkpoint_bytes=size,
        frozen_bytes=prepared.frozen_bytes,
        checkpoints=checkpoints,
        disk_bytes=checkpoints * size + prepared.frozen_bytes,
        free_bytes=free,
        batch_sizes=[Tried(**one) for one in found["batch_sizes"]] if "batch_sizes" in found else None,
        largest_batch_size=found.get("largest_batch_size"),
    )
