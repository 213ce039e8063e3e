"""One training run from recipe to registered model. The command, a Tune trial and `m2can.train` all call `run`.

Torch, Ray and MLflow are imported where they are needed: a local Ray starts while the others are still being imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from datasets_manifest.errors import InputError, without_password
from datasets_manifest.files import require_file
from trainers.failures import RunStopped, TrackingUnavailable
from trainers.run_result import Result
from trainers.run_tracking import RunTracking
from trainers.tracking.address import tracking_uri

if TYPE_CHECKING:
    import threading

    import torch

    from trainers.journal.journal import EpochRecord
    from trainers.journal.outcome import Outcome
    from trainers.preflight.preparation import Prepared
    from trainers.recipe import Recipe
    from trainers.store.run_store import RunStore
    from trainers.tracking.sender import TrackedRun

Stop = AbstractContextManager["threading.Event | None"]


class RunObserver:
    """Hears how a run goes. It is entered while the workers run."""

    def on_start(self, prepared: Prepared) -> None:
        """All inputs were found good; the workers are about to start."""

    def on_step(self, content: dict[str, Any]) -> None:
        """A step has ended: epoch, step, steps, samples and the loss terms of its passes."""

    def on_floor(self, metrics: dict[str, float]) -> None:
        """The floor was found, before the first step: its metrics by name."""

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch was trained and scored."""

    def __enter__(self) -> RunObserver:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def run(
    recipe: Recipe,
    *,
    observer: RunObserver | None = None,
    stop: Stop | None = None,
    trace: Path | None = None,
    profile: bool = False,
    cpu_fraction: float = 1.0,
    tags: Mapping[str, str] = MappingProxyType({}),
    register: bool = True,
    candidate: str = "if-not-worse",
    floor: bool = True,
    floor_only: bool = False,
) -> Result:
    """Check the inputs, train, choose an epoch, draw the report, log to MLflow and register the model.

    Nothing is started or written before all inputs were found good; then the run's folder is this command's alone.

    Args:
        stop: entered while the workers run. Once its event is set, they write a checkpoint and the run ends.
        trace: file for every step's loss terms, as JSON lines.
        profile: write a profile of a few steps to the run's folder.
        cpu_fraction: part of the cluster's CPUs that this run may take, 0 to 1.
        tags: of the MLflow run, beside those that every run has.
        register: whether the model goes into the registry.
        candidate: whether the alias `candidate` moves to it: `if-not-worse` than the version that has it, or `always`.
        floor: whether a floor is found before the first step, if the recipe's runs have one.
        floor_only: find the floor and train nothing; the run is called as the recipe says, and `-floor`.

    Raises:
        InputError: the recipe, its data or the cluster are not right.
        RunFailed: training ended without a model.
        RunStopped: the event of `stop` was set.
        TrackingUnavailable: MLflow was away at the end; the run's folder holds everything.
    """
    observer = observer or RunObserver()
    if trace is not None:
        require_file(trace, "--trace")
    prepared = prepare_and_start_ray(recipe)
    if floor_only:  # the name itself is that of a training, which would find this one ended
        named = f"{prepared.name}-floor"
        prepared = replace(prepared, name=named, folder=prepared.folder.with_name(named))
    from trainers.cluster import driver

    if floor_only:

        def train(prepared: Prepared, *, on_step: Any, stop: threading.Event | None) -> Outcome:
            return driver.find_floor(prepared, on_floor=observer.on_floor, stop=stop, cpu_fraction=cpu_fraction)

    else:
        train = partial(
            driver.train,
            on_epoch=observer.on_epoch,
            on_floor=observer.on_floor,
            trace=trace,
            profile=profile,
            cpu_fraction=cpu_fraction,
            floor=floor,
        )
    with driver.run_lock(prepared, cpu_fraction):
        observer.on_start(prepared)
        return _run_prepared(
            prepared,
            train,
            RunTracking(prepared, tags, candidate) if recipe.tracking.enabled else None,
            observer=observer,
            stop=stop or nullcontext(),
            register=register,
        )


def run_in_process(
    recipe: Recipe,
    device: torch.device,
    cpus: float = 1.0,
    *,
    observer: RunObserver | None = None,
    stop: Stop | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """As `run`, in this process on one device, without Ray Train's: for a recipe with `encoders.features`, among many.

    No model is registered, and no floor is found. Of the report there is the summary alone; `draw_finished` draws the rest.
    A process that died is started again by its caller: the run goes on from its last checkpoint. Ray is not needed.

    Args:
        cpus: how many the training may use: a thread each.

    Raises:
        see `run`.
    """
    observer = observer or RunObserver()
    from trainers.cluster.driver import run_lock
    from trainers.cluster.in_process import train_in_process
    from trainers.preflight.preparation import prepare

    prepared = prepare(recipe)
    with run_lock(prepared, None):
        observer.on_start(prepared)
        return _run_prepared(
            prepared,
            partial(train_in_process, device=device, cpus=cpus, on_epoch=observer.on_epoch, floor=False),
            RunTracking(prepared, tags, "if-not-worse") if recipe.tracking.enabled else None,
            observer=observer,
            stop=stop or nullcontext(),
            register=False,
            pictures=False,
        )


def draw_finished(recipe: Recipe) -> Path:
    """Draw the report of a run that `run_in_process` ended; returns its folder.

    Raises:
        InputError: the recipe, its data or a checkpoint are not right.
        RunFailed: no epoch has a checkpoint.
    """
    from trainers.cluster.in_process import outcome_of
    from trainers.preflight.preparation import prepare
    from trainers.reports.run_report import draw_report

    return draw_report(outcome_of(prepare(recipe), floor=False))


def _run_prepared(
    prepared: Prepared,
    train: Callable[..., Outcome],
    tracking: RunTracking | None,
    *,
    observer: RunObserver,
    stop: Stop,
    register: bool,
    pictures: bool = True,
) -> Result:
    """Train and publish.

    Args:
        train: called with the prepared recipe, `on_step` and the event that asks it to `stop`.
        pictures: whether the report has more than its summary.
    """

    def on_step(content: dict[str, Any]) -> None:
        observer.on_step(content)
        if tracking is not None:
            tracking.begin(content["precision"])

    try:
        with observer, stop as stop_event:
            outcome = train(prepared, on_step=on_step, stop=stop_event)
        from trainers.journal.outcome import link_best
        from trainers.reports.run_report import draw_report  # not before: training must not wait for its imports

        report = draw_report(outcome, pictures=pictures)
        link_best(outcome)
        if prepared.store is not None:
            send_findings(prepared.store)
        tracked = tracking.publish(outcome, report, register) if tracking else None
    except TrackingUnavailable:  # it takes no end either
        raise
    except BaseException as error:
        # What is refused before the first step leaves nothing in MLflow: the name may be that of a finished run.
        if tracking is not None and (tracking.has_begun or not isinstance(error, (InputError, OSError))):
            asked = isinstance(error, (KeyboardInterrupt, RunStopped))
            with contextlib.suppress(TrackingUnavailable):  # the first error is the one to report
                tracking.close("KILLED" if asked else "FAILED")
        raise
    uri = tracking_uri(prepared.recipe) if tracking else None
    result = _result(outcome, report, uri, tracked, tracking.sender().tags if tracking else {})
    return replace(result, stored=str(prepared.store)) if prepared.store is not None else result


def send_findings(store: RunStore) -> None:
    """Send what the driver of a run found to the store; workers and controller have sent all else.

    Raises:
        InputError: the store does not take it.
    """
    from trainers.store.run_store import store_told

    with store_told(store):
        files = [file.name for file in store.folder.glob("*.jsonl")]
        files += [file.name for file in store.folder.glob("nonfinite-*.json")]
        store.send(*files, "report")


def prepare_and_start_ray(recipe: Recipe) -> Prepared:
    """`trainers.preflight.preparation.prepare`, then Ray, whose object store takes the table: what is refused starts nothing.

    Raises:
        InputError: the recipe or its data are not right, or no cluster answers at `cluster.address`.
    """
    from trainers.preflight.inputs import read_inputs

    inputs = read_inputs(recipe)  # before torch is imported: it takes seconds, and most that is wrong is found here
    from trainers.cluster.local_cluster import start_ray
    from trainers.preflight.preparation import prepare

    prepared = prepare(recipe, inputs)
    start_ray(recipe.cluster.address)
    from trainers.cluster.driver import in_object_store

    return in_object_store(prepared)


def _result(
    outcome: Outcome, report: Path, uri: str | None, tracked: TrackedRun | None, tags: Mapping[str, str]
) -> Result:
    from trainers.reports.page import REPORT

    return Result(
        run_name=outcome.name,
        folder=outcome.folder,
        sources=outcome.card.sources,
        target=outcome.card.target,
        checkpoint=outcome.checkpoint,
        **{name: value for name, value in outcome.numbers().items() if name != "floor"},
        report=report,
        report_page=report / REPORT,
        records=outcome.records,
        run_id=tracked.run_id if tracked else None,
        tracking_uri=without_password(uri) if uri else None,
        model_name=tracked.model_name if tracked else None,
        model_version=tracked.model_version if tracked else None,
        experiment_id=tracked.experiment_id if tracked else None,
        not_candidate=tracked.not_candidate if tracked else None,
        findings=outcome.findings,
        floor=outcome.floor,
        tags=dict(tags),
    )
