"""One trial: one training run, in a process of Ray Tune's or started from it. Its result is written to `trial.json`."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from datasets_manifest.errors import InputError
from datasets_manifest.files import whole_folder, write_atomically
from trainers.failures import RunFailed, RunStopped
from trainers.journal.journal import EpochRecord, Journal
from trainers.journal.outcome import read_validator_inputs
from trainers.model.card import FLOOR
from trainers.recipe import Recipe
from trainers.run_result import Result
from trainers.tracking.mlflow_compat import PARENT_TAG
from trainers.training_run import RunObserver, Stop, draw_finished, run, run_in_process
from trainers.validators import choose_epoch, epoch_score
from tuning.packing import Packing
from tuning.sweep import LEAVE_ONE_SOURCE_OUT, SweepPlan
from tuning.trial_results import TRIAL_FILE, Trial

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a sweep share.

    folder: where their runs go. cpu_fraction: part of the cluster a trial may take, 0 to 1. parent: MLflow run of the sweep.
    packing: what a trial takes, and where it trains. floor: the folder of that of all trials; None: each that needs one finds it.
    """

    plan: SweepPlan
    folder: Path
    cpu_fraction: float
    tracking_uri: str | None
    parent: str | None
    packing: Packing
    floor: Path | None = None


def run_trial(config: dict[str, Any], job: TrialJob) -> None:
    """Tune's function: train, report every epoch, leave `trial.json`.

    A trial that Tune starts again goes on from its run's checkpoint; one that had ended only repeats its last report.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    torch.set_num_threads(1)
    name = f"{job.plan.sweep.name}-{tune.get_context().get_trial_id()}"
    file, stop = job.folder / name / TRIAL_FILE, threading.Event()

    def tell(report: dict[str, Any]) -> None:
        tune.report(report)  # returns after the scheduler's decision
        if stop_file(job.folder, name).is_file():
            stop.set()

    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["status"] == "failed":  # Tune starts it again as if its process had died
            raise RunFailed(content["error"])
    elif job.packing.device is not None:
        content = _work(config, job, name, tell, stop)
    else:
        content = _work_in_thread(config, job, name, tell, stop)
    tune.report(last_report(content))


def _work_in_thread(
    config: dict[str, Any], job: TrialJob, name: str, tell: Report, stop: threading.Event
) -> dict[str, Any]:
    reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
    with ThreadPoolExecutor(1, thread_name_prefix=name) as pool:
        # tune.report must be called from Tune's own thread, so another thread drives the run.
        work = pool.submit(_work, config, job, name, reports.put, stop)
        work.add_done_callback(lambda _: reports.put(None))
        while (report := reports.get()) is not None:
            tell(report)
        return work.result()


def stop_file(folder: Path, name: str) -> Path:
    """The file that asks a trial to end: the trial stops after the step in which the file appears."""
    return folder / name / "stop"


def last_report(content: dict[str, Any]) -> dict[str, Any]:
    """The report to Tune that ends a trial."""
    return {"score": content["score"], "epoch": content["epochs"], "finished": True}


def _work(config: dict[str, Any], job: TrialJob, name: str, report: Report, stop: threading.Event) -> dict[str, Any]:
    started = time.monotonic()
    overrides = job.plan.trial_overrides(config)
    content: dict[str, Any] = {"name": name, "config": config, "overrides": overrides}
    try:
        if job.plan.sweep.objective == LEAVE_ONE_SOURCE_OUT and not job.plan.sweep.is_comparison:
            content |= _leave_each_source_out(job, name, overrides)
        else:
            content |= _target_run(job, name, overrides, report, stop)
    except RunStopped:
        content |= {"status": "stopped", "score": _score_so_far(job, name), "epochs": len(_journal(job, name).read())}
    except (RunFailed, InputError) as error:
        write_atomically(
            job.folder / name / TRIAL_FILE, json.dumps(content | {"status": "failed", "error": str(error)}) + "\n"
        )
        raise
    content = {"status": "finished", **content, "seconds": time.monotonic() - started}
    write_atomically(job.folder / name / TRIAL_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return content


def _target_run(
    job: TrialJob, name: str, overrides: list[str], report: Report, stop: threading.Event
) -> dict[str, Any]:
    class ReportEpochs(RunObserver):
        def on_epoch(self, record: EpochRecord) -> None:
            report({"epoch": record.epoch, "score": _score_so_far(job, name), "finished": False})

    recipe = placed_recipe(job, name, overrides)
    _take_floor(job, job.folder / name)
    result = train_run(job, recipe, ReportEpochs(), nullcontext(stop))
    return {
        "score": epoch_score(recipe.selection.validator, read_validator_inputs(result.checkpoint)),
        "epochs": result.last_epoch,
        "chosen_epoch": result.chosen_epoch,
        "checkpoint": str(result.checkpoint),
        "source_accuracy": result.chosen_metrics.get("source/val/accuracy"),
        "target_macro_f1": result.chosen_metrics.get("target/val/macro_f1"),
        **result.accuracies(),
        "tags": dict(result.tags),
    }


def _take_floor(job: TrialJob, trial: Path) -> None:
    """Give a trial's run the floor of all trials, unless it has one."""
    if job.floor is not None and not (trial / FLOOR).is_dir():
        with whole_folder(trial / FLOOR) as draft:
            shutil.copytree(job.floor, draft, dirs_exist_ok=True)


def _leave_each_source_out(job: TrialJob, name: str, overrides: list[str]) -> dict[str, Any]:
    """Each source is the target once; the score is the mean accuracy by its labels."""
    sources = job.plan.recipe(overrides).data.sources
    accuracies: dict[str, float] = {}
    epochs = 0
    for position, left_out in enumerate(sources):
        others = [source for source in sources if source != left_out]
        swapped = [*overrides, f"data.sources={json.dumps(others)}", f"data.target={json.dumps(left_out)}"]
        result = train_run(job, placed_recipe(job, f"{name}-without-{position}", swapped))
        if result.target_accuracy_chosen is None:
            raise InputError(
                "has no labelled validation records, by which leave_one_source_out scores it",
                field="data.sources",
                value=left_out,
                wanted=f"labels in its split `{job.plan.recipe(overrides).data.val_split}`, or another objective",
            )
        accuracies[result.target] = result.target_accuracy_chosen
        epochs += result.last_epoch
    return {"score": float(np.mean(list(accuracies.values()))), "left_out": accuracies, "epochs": epochs}


def placed_recipe(job: TrialJob, name: str, overrides: list[str]) -> Recipe:
    """The trial's recipe with its run's name and place."""
    recipe = job.plan.recipe(overrides)
    run = recipe.run.model_copy(update={"name": name, "storage": str(job.folder)})
    tracking = recipe.tracking.model_copy(update={"uri": job.tracking_uri})
    return recipe.model_copy(update={"run": run, "tracking": tracking})


def train_run(
    job: TrialJob, recipe: Recipe, observer: RunObserver | None = None, stop: Stop | None = None, *, floor: bool = False
) -> Result:
    """Train with an MLflow run below the sweep's; no model is registered.

    Args:
        floor: whether a floor may be chosen in the place of an epoch. A trial's may not: it is compared with the best trial alone
            (tuning.sweep_floor).
    """
    tags = tags_of(job)
    if job.packing.device is not None and not floor:
        device = torch.device(job.packing.device)
        return run_in_process(recipe, device, job.packing.cpus, observer=observer, stop=stop, tags=tags)
    return run(
        recipe,
        observer=observer,
        stop=stop,
        cpu_fraction=job.cpu_fraction,
        tags=tags,
        register=False,
        floor=floor,
    )


def tags_of(job: TrialJob) -> dict[str, str]:
    """Those of every run below the sweep's."""
    return {"m2can.sweep": job.plan.sweep.name} | ({PARENT_TAG: job.parent} if job.parent else {})


def draw_report_of(job: TrialJob, trial: Trial) -> None:
    """Draw the report of a trial that trained in Tune's process, and left the summary alone."""
    if job.packing.device is not None:
        draw_finished(placed_recipe(job, trial.name, trial.overrides))


def _journal(job: TrialJob, name: str) -> Journal:
    return Journal(str(job.folder / name / "journal"))


def _score_so_far(job: TrialJob, name: str) -> float:
    """The score of the epoch that would be chosen now."""
    records = _journal(job, name).read()
    scores = [record.metrics.get("selection/score", float("nan")) for record in records]
    sources = [record.metrics.get("source/val/accuracy") for record in records]
    return scores[choose_epoch(scores, sources, job.plan.recipe([]).selection.gate)]
