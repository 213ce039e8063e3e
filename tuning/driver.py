"""The driver of a sweep: Ray Tune around Train runs, one MLflow run above theirs, the best model registered."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import ray
import yaml
from mlflow.exceptions import MlflowException
from ray import tune

from datasets_manifest.errors import InputError, without_password
from datasets_manifest.files import read_json, write_atomically
from trainers.cluster.cluster_watch import end_with_cluster
from trainers.cluster.local_cluster import start_ray
from trainers.cluster.resources import most_resources, worker_resources
from trainers.failures import RunFailed, RunStopped, TrackingUnavailable
from trainers.journal.journal import Journal
from trainers.journal.outcome import FloorResult, link_to, read_validator_inputs
from trainers.model.card import load_card, model_folder
from trainers.preflight.preparation import prepare
from trainers.preflight.run_lock import driver_lock, require_free
from trainers.recipe import Recipe, stated_values
from trainers.recipe.base import decided
from trainers.reports.page import REPORT
from trainers.tracking.address import require_folder_of_runs, resolve_tracking_uri, run_storage
from trainers.tracking.mlflow_run import RunLink, close_children
from trainers.tracking.provenance import job_tags
from trainers.tracking.run_sender import model_to_log
from trainers.tracking.sender import CLOSED_WITHIN_S, Sender, TrackedRun
from trainers.validators import choose_candidate
from tuning.packing import DRIVER_CPUS, pack
from tuning.progress import Progress, live_table, settings
from tuning.report import draw_report, summary
from tuning.search import METRIC, scheduler, search_space
from tuning.shared_features import share
from tuning.sweep import LEAVE_ONE_SOURCE_OUT, SweepPlan
from tuning.sweep_floor import SweepFloor, compared_with, floor_before
from tuning.trial import TrialJob, draw_report_of, placed_recipe, run_trial, train_run
from tuning.trial_results import Trial, read_trials, result_tree

Found = TypeVar("Found")


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep.

    best: None for a comparison. best_recipe: the file that `train` takes. registered: where the best model is.
    report: folder with the pictures. report_page: report.html in it. parent_run: the sweep's MLflow run.
    shared: the features that all trials were trained on, in words; None: each ran its encoders.
    floor: of the best trial's recipe, chosen where no trial is better; None if its runs have none.
    """

    plan: SweepPlan
    folder: Path
    trials: list[Trial]
    best: Trial | None
    best_recipe: Path | None
    registered: TrackedRun | None
    report: Path
    tracking_uri: str | None
    parent_run: str | None
    shared: str | None = None
    floor: FloorResult | None = None

    @property
    def report_page(self) -> Path:
        return self.report / REPORT

    def table(self) -> str:
        """The trials and what was chosen, as text, and searched keys that cannot have acted."""
        return summary(self.plan, self.trials, self.best, self.floor)

    def to_dict(self) -> dict[str, Any]:
        """The `end` event that `m2can tune --json` prints."""
        registered = self.registered
        return {
            "event": "end",
            "sweep": self.plan.sweep.name,
            **result_tree(self.plan.sweep, self.trials, self.best, self.floor),
            "shared_features": self.shared,
            "best_recipe": str(self.best_recipe) if self.best_recipe else None,
            "model_name": registered.model_name if registered else None,
            "model_version": str(registered.model_version) if registered else None,
            "tracking_uri": self.tracking_uri,
            "run_id": self.parent_run,
            "report": str(self.report),
            "report_page": str(self.report_page),
        }


def run_sweep(plan: SweepPlan) -> SweepResult:
    """Run all trials, or those that are left of a sweep of this name, then choose, draw and register.

    Raises:
        InputError: the sweep or its data are not right.
        RunFailed: no trial came to an end.
        TrackingUnavailable: MLflow was away when the model was to be registered; the sweep's folder has everything.
    """
    base = plan.recipe([])
    require_folder_of_runs(base, "a sweep")
    storage = run_storage(base)
    folder = storage / plan.sweep.name
    uri = resolve_tracking_uri(base.tracking.uri, storage) if base.tracking.enabled else None
    _require_own_name(plan, folder)
    require_free(folder, "name")
    epochs = decided(prepare(base).recipe.train.epochs)
    own_ray = start_ray(base.cluster.address)
    worker_resources(base)
    with driver_lock(folder, "name", on_wait=lambda words: print(f"note: {words}", file=sys.stderr, flush=True)):
        _claim(plan, folder)
        parent = _open_parent(plan, base, uri, storage, folder) if uri else None

        def close(status: str) -> None:
            if uri and parent:
                with contextlib.suppress(TrackingUnavailable, MlflowException):  # what ended the sweep is to be told
                    close_children(uri, parent, status)
                    _sender(plan, base, uri, storage, folder).finish(status, deadline_s=CLOSED_WITHIN_S)

        try:
            with end_with_cluster(lambda: close("FAILED")):
                return _run_claimed(plan, base, storage, folder, uri, parent, epochs)
        except BaseException as error:
            if own_ray:
                ray.shutdown()  # ends the trials, whose runs are closed below
            close("KILLED" if isinstance(error, (KeyboardInterrupt, RunStopped)) else "FAILED")
            raise


def _run_claimed(
    plan: SweepPlan, base: Recipe, storage: Path, folder: Path, uri: str | None, parent: str | None, epochs: int
) -> SweepResult:
    sweep = plan.sweep
    of_trials, shared = share(plan, base, folder)
    resources = most_resources()
    packing = pack(of_trials.recipe([]), resources, sweep.max_concurrent)
    fraction = (1 - DRIVER_CPUS * packing.concurrent / resources.get("CPU", 1.0)) / packing.concurrent
    job = TrialJob(of_trials, folder / "trials", fraction, uri, parent, packing)
    floor_of_all = _unless_there_is_none(lambda: floor_before(job))
    job = replace(job, floor=floor_of_all.checkpoint if floor_of_all else None)
    errors = _run_trials(plan, job, folder, epochs, base.cluster.max_failures)
    trials = read_trials(folder / "trials", sweep)
    finished = [trial for trial in trials if trial.finished]
    if not finished:
        raise RunFailed(f"no trial of {sweep.name} came to an end; the first error: {next(iter(errors.values()), '–')}")
    best = None if sweep.is_comparison else choose_trial(plan, base, finished)
    best_recipe = _write_best(plan, base, best, folder) if best else None
    if best is not None and "checkpoint" in best.content:  # leave_one_source_out has none of all sources
        link_to(Path(best.content["checkpoint"]), folder / "best")
        draw_report_of(job, best)
    beside = None
    if best is not None and "checkpoint" in best.content:  # the last run of leave_one_source_out has its own
        beside = _unless_there_is_none(partial(compared_with, job, best, floor_of_all))
    floor = beside.compared if beside else None
    registered = None
    if uri:
        registered = _register(plan, job, best, storage, beside) if best else None
    report = folder / "report"
    draw_report(plan, trials, best, report, shared, floor)
    if uri:
        _sender(plan, base, uri, storage, folder).finish("FINISHED", artifacts=report)
    shown = without_password(uri) if uri else None
    return SweepResult(plan, folder, trials, best, best_recipe, registered, report, shown, parent, shared, floor)


def _unless_there_is_none(find: Callable[[], Found | None]) -> Found | None:
    """A floor. Without one the sweep goes on, and says so."""
    try:
        return find()
    except RunFailed as error:
        print(f"note: no floor to compare with: {error}", file=sys.stderr, flush=True)
        return None


def choose_trial(plan: SweepPlan, base: Recipe, finished: list[Trial]) -> Trial:
    """The best trial without target labels: by the validator behind the gate, or by the sources left out."""
    validator = plan.sweep.objective
    if validator == LEAVE_ONE_SOURCE_OUT:
        return max(finished, key=lambda trial: trial.score)
    inputs = [read_validator_inputs(Path(str(trial.content["checkpoint"]))) for trial in finished]
    return finished[choose_candidate(validator, inputs, base.selection.gate)]


def _claim(plan: SweepPlan, folder: Path) -> None:
    """Record the sweep in its folder."""
    file = folder / "sweep.json"
    if not file.is_file():
        write_atomically(file, json.dumps(_description(plan), indent=1, ensure_ascii=False) + "\n")


def _require_own_name(plan: SweepPlan, folder: Path) -> None:
    """Raises InputError: the folder holds a different sweep."""
    file = folder / "sweep.json"
    if not file.is_file():
        return
    before, now = read_json(file), _description(plan)
    parts = (
        {"share_features": False, **before.get("sweep", {}), "recipe": before.get("tree")},
        {**now["sweep"], "recipe": now["tree"]},
    )
    changed = [key for key in parts[1] if parts[0].get(key) != parts[1][key]]
    if changed:
        problem = f"is the name of a sweep that differs in {', '.join(changed[:3])}"
        raise InputError(problem, file=plan.file, field="name", value=plan.sweep.name, wanted="another name")


def _description(plan: SweepPlan) -> dict[str, Any]:
    tree = {"sweep": plan.sweep.model_dump(mode="json", exclude={"max_concurrent", "recipe"}), "tree": plan.tree}
    return dict(json.loads(json.dumps(tree, default=str)))


def _run_trials(plan: SweepPlan, job: TrialJob, folder: Path, epochs: int, max_failures: int) -> dict[str, str]:
    """Errors by trial id."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # standard output is ours
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would return as if the sweep had ended
    needs = {"cpu": job.packing.cpus, "gpu": job.packing.gpus}
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), needs)
    place = folder / "tune"
    if tune.Tuner.can_restore(str(place)):
        tuner = tune.Tuner.restore(str(place), trainable=trainable, resume_unfinished=True)
    else:
        sweep = plan.sweep
        space, search = search_space(plan, job.packing.concurrent)
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=search,
                scheduler=scheduler(plan, job.folder),
                reuse_actors=True,  # imports take longer than many a trial
                num_samples=1 if sweep.is_comparison or sweep.algorithm == "grid" else sweep.trials,
            ),
            run_config=tune.RunConfig(
                name=place.name,
                storage_path=str(folder),
                verbose=0,
                callbacks=[Progress(plan, epochs)],
                failure_config=tune.FailureConfig(max_failures=abs(max_failures)),  # of a trial's own process
            ),
        )
    with live_table():
        grid = tuner.fit()
    failed = [result for result in grid if result.error is not None]
    return {Path(result.path).name: str(result.error).strip().splitlines()[-1] for result in failed}


def _open_parent(plan: SweepPlan, base: Recipe, uri: str, storage: Path, folder: Path) -> str:
    tags = {"m2can.sweep": plan.sweep.name, "m2can.folder": str(folder), **job_tags()}
    link = RunLink.open(uri, base.tracking.experiment, storage, plan.sweep.name, tags)
    link.log_params(
        {f"sweep.{key}": value for key, value in plan.sweep.model_dump(mode="json").items() if key != "recipe"}
    )
    return link.run_id


def _sender(plan: SweepPlan, base: Recipe, uri: str, storage: Path, folder: Path) -> Sender:
    journal = Journal(str(folder / "journal"))  # empty: the trials have theirs
    return Sender(uri, base.tracking.experiment, plan.sweep.name, journal, {}, {}, storage)


def _write_best(plan: SweepPlan, base: Recipe, best: Trial, folder: Path) -> Path:
    """The best recipe, with absolute paths; run name and place are those of the sweep's recipe."""
    found = plan.recipe(best.overrides).model_copy(update={"run": base.run})
    head = f"# The best of {plan.sweep.name}: trial {best.name}, {settings(best.config)}\n"
    head += f"# What differs from the preset {found.preset}; m2can {version('m2can')}\n"
    file = folder / "best.yaml"
    write_atomically(file, head + yaml.safe_dump(stated_values(found), sort_keys=False, allow_unicode=True))
    return file


def _register(plan: SweepPlan, job: TrialJob, best: Trial, storage: Path, floor: SweepFloor | None) -> TrackedRun:
    """The best trial's model, or the floor where it was chosen; after leave-one-source-out that of one more run, with all
    sources."""
    assert job.tracking_uri is not None
    score = best.score
    if plan.sweep.objective == LEAVE_ONE_SOURCE_OUT:
        name = f"{plan.sweep.name}-best"
        result = train_run(job, placed_recipe(job, name, best.overrides), floor=True)
        checkpoint, epoch, numbers, tags = result.checkpoint, result.chosen_epoch, result.accuracies(), result.tags
        metrics = result.chosen_metrics
    elif floor is not None and floor.compared.chosen:
        result, metrics = floor.result, floor.compared.metrics
        name, checkpoint, epoch = result.run_name, result.checkpoint, 0
        numbers, tags, score = result.accuracies(), result.tags, metrics["selection/score"]
    else:
        content = best.content
        name, tags, epoch = best.name, content["tags"], int(content["chosen_epoch"])
        checkpoint = Path(content["checkpoint"])
        numbers = {key: content[key] for key in ("target_accuracy_chosen", "target_accuracy_last", "regret")}
        scores = {"selection/score": best.score, "source/val/accuracy": content.get("source_accuracy")}
        metrics = {key: value for key, value in scores.items() if value is not None}
    tags = {**tags, "m2can.sweep_score": f"{score:.6f}"}
    model = model_to_log(checkpoint, epoch, numbers, name, tags, metrics=metrics)
    experiment = load_card(model_folder(checkpoint)).recipe.tracking.experiment
    journal = Journal(str(job.folder / name / "journal"))
    sender = Sender(job.tracking_uri, experiment, name, journal, {}, {}, storage)
    return sender.finish("FINISHED", artifacts=job.folder / name / "report", model=model)
