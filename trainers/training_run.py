"""One training run from recipe to registered model. The command, a Tune trial and `m2can.train` all call `run`.

Torch, Ray and MLflow are imported where they are needed: a local Ray starts while the others are still being imported.
"""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from datasets_manifest.errors import InputError, without_password
from datasets_manifest.files import require_file
from trainers.failures import RunStopped, TrackingUnavailable
from trainers.run_tracking import RunTracking
from trainers.tracking.address import tracking_uri

if TYPE_CHECKING:
    import threading

    import torch

    from trainers.journal.findings import Finding
    from trainers.journal.journal import EpochRecord
    from trainers.journal.outcome import FloorResult, Outcome
    from trainers.preflight.preparation import Prepared
    from trainers.recipe import Recipe
    from trainers.store.run_store import RunStore
    from trainers.tracking.sender import TrackedRun

Stop = AbstractContextManager["threading.Event | None"]
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Result:
    """What a training run came to.

    checkpoint: folder of the chosen epoch, which `Predictor.load` reads. oracle_epoch: the epoch best by target labels.
    Accuracies are those of the target's validation records, 0 to 1, and None without labels; regret is oracle less chosen.
    target_accuracy_expected, …_low, …_high: what is expected of the chosen epoch's without a label of the target, and its
    interval (trainers.validators.expected); None without labelled validation records of the sources.
    target_accuracy_checked, …_low, …_high: what it is on the target's labels that were given and held out.
    report: folder with the pictures. report_page: report.html in it. records: every epoch with its metrics.
    run_id, tracking_uri: of the MLflow run, None if `tracking.enabled` is false. model_name, model_version: in the registry,
    None if no model was registered. experiment_id: of the MLflow run. not_candidate: why the alias `candidate` did not move
    to the version, None if it did. findings: what went wrong, with what to change. stopped_early: where and why the run ended
    before its last epoch, None if it did not. started_from: the run or model that it began with. floor: what a linear classifier
    on the untrained encoders' features gives, None if the run has none; if it was chosen, chosen_epoch is 0. tags: of the MLflow
    run. stored: where the run lies in an object store; `folder` is then this machine's copy; None: it lies in the folder.
    """

    run_name: str
    folder: Path
    sources: list[str]
    target: str
    checkpoint: Path
    validator: str
    chosen_epoch: int
    last_epoch: int
    oracle_epoch: int | None
    target_accuracy_chosen: float | None
    target_accuracy_last: float | None
    target_accuracy_oracle: float | None
    regret: float | None
    report: Path
    report_page: Path
    records: list[EpochRecord] = field(repr=False)
    run_id: str | None = None
    tracking_uri: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    experiment_id: str | None = None
    not_candidate: str | None = None
    findings: list[Finding] = field(default_factory=list)
    stopped_early: str | None = None
    started_from: str | None = None
    floor: FloorResult | None = None
    stored: str | None = None
    target_accuracy_expected: float | None = None
    target_accuracy_expected_low: float | None = None
    target_accuracy_expected_high: float | None = None
    target_accuracy_checked: float | None = None
    target_accuracy_checked_low: float | None = None
    target_accuracy_checked_high: float | None = None
    tags: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def chosen_metrics(self) -> dict[str, float]:
        """Metrics of the chosen epoch, or of the floor."""
        if self.floor is not None and self.floor.chosen:
            return self.floor.metrics
        return next(record.metrics for record in self.records if record.epoch == self.chosen_epoch)

    @property
    def chosen(self) -> str:
        """`epoch 7`, or `the floor`."""
        return f"epoch {self.chosen_epoch}" if self.chosen_epoch else "the floor"

    def accuracies(self) -> dict[str, float | None]:
        """The accuracies and the regret by name."""
        names = ["target_accuracy_chosen", "target_accuracy_last", "target_accuracy_oracle", "regret"]
        for kind in ("expected", "checked"):
            names += [f"target_accuracy_{kind}{end}" for end in ("", "_low", "_high")]
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The `end` event that `m2can train --json` prints last."""
        return {
            "event": "end",
            "run_name": self.run_name,
            "stored": self.stored,
            "run_id": self.run_id,
            "tracking_uri": self.tracking_uri,
            "started_from": self.started_from,
            "checkpoint": str(self.checkpoint),
            "model_name": self.model_name,
            "model_version": self.model_version,
            "not_candidate": self.not_candidate,
            "validator": self.validator,
            "chosen_epoch": self.chosen_epoch,
            "last_epoch": self.last_epoch,
            "oracle_epoch": self.oracle_epoch,
            "stopped_early": self.stopped_early,
            "floor": None if self.floor is None else self.floor.numbers(),
            **self.accuracies(),
            "warnings": [asdict(finding) for finding in self.findings],
            "report": str(self.report),
            "report_page": str(self.report_page),
        }

    def _repr_html_(self) -> str:
        """Accuracies and the report's pictures, as a notebook shows them."""
        rows = {name.replace("_", " "): value for name, value in self.accuracies().items() if value is not None}
        cells = "".join(f"<tr><th>{name}</th><td>{100 * value:.1f} %</td></tr>" for name, value in rows.items())
        files = [file for file in sorted(self.report.iterdir()) if file.suffix in _PICTURES]
        pictures = "".join(
            f'<img alt="{file.stem.replace("_", " ")}" style="max-width:100%" '
            f'src="data:{_PICTURES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}">'
            for file in files
        )
        where = html.escape(f"{' + '.join(self.sources)} → {self.target}: {self.run_name}, {self.chosen}")
        return f"<p><strong>{where}</strong></p><table>{cells}</table>{pictures}"


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

    return draw_report(outcome_of(prepare(recipe)))


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
    """`trainers.preflight.preparation.prepare`, then Ray: what is refused has started nothing.

    Raises:
        InputError: the recipe or its data are not right, or no cluster answers at `cluster.address`.
    """
    from trainers.preflight.inputs import read_inputs

    inputs = read_inputs(recipe)  # before torch is imported: it takes seconds, and most that is wrong is found here
    from trainers.cluster.local_cluster import start_ray
    from trainers.preflight.preparation import prepare

    prepared = prepare(recipe, inputs)
    start_ray(recipe.cluster.address)
    return prepared


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
