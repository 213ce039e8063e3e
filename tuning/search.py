"""A sweep's space, searcher and scheduler in Ray Tune's terms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from datasets_manifest.files import write_atomically
from trainers.recipe.training_rule import MOST_EPOCHS
from tuning.sweep import Choices, Range, SweepPlan
from tuning.trial import stop_file

METRIC = "score"


def search_space(plan: SweepPlan, concurrent: int) -> tuple[dict[str, Any], Any]:
    """Tune's space and searcher; with `concurrent` trials at once."""
    sweep = plan.sweep
    if sweep.is_comparison:
        grid = {"seed": tune.grid_search(list(sweep.seeds)), "variant": tune.grid_search(list(sweep.variants))}
        return grid, BasicVariantGenerator(max_concurrent=concurrent)
    if sweep.algorithm == "grid":
        points = {key: part.choices if isinstance(part, Choices) else part.grid() for key, part in sweep.space.items()}
        return {key: tune.grid_search(values) for key, values in points.items()}, BasicVariantGenerator(
            max_concurrent=concurrent
        )
    domains = {key: _domain(part) for key, part in sweep.space.items()}
    if sweep.algorithm == "random":
        return domains, BasicVariantGenerator(max_concurrent=concurrent, random_state=sweep.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each study that it makes
    search = OptunaSearch(OptunaSearch.convert_search_space(domains), metric=METRIC, mode="max", seed=sweep.seed)
    return {}, ConcurrencyLimiter(search, max_concurrent=concurrent)


def _domain(part: Choices | Range) -> Any:
    if isinstance(part, Choices):
        return tune.choice(part.choices)
    if part.integer:
        low, high = int(part.low), int(part.high)
        if part.log:
            return tune.lograndint(low, high + 1)
        return tune.qrandint(low, high, int(part.step)) if part.step else tune.randint(low, high + 1)
    if part.log:
        return tune.loguniform(part.low, part.high)
    return tune.quniform(part.low, part.high, part.step) if part.step else tune.uniform(part.low, part.high)


class Halving(ASHAScheduler):
    """ASHA that asks a trial to end in place of killing it.

    A killed trial's training holds its CPUs for minutes (Ray 2.60), and its MLflow run would stay open.
    """

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._name, self._folder = name, folder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and not result["finished"]:
            write_atomically(stop_file(self._folder, f"{self._name}-{trial.trial_id}"), "")
            return TrialScheduler.CONTINUE
        return decision


def scheduler(plan: SweepPlan, folder: Path) -> TrialScheduler:
    asha = plan.sweep.asha
    if asha is None:
        return FIFOScheduler()
    epochs = plan.recipe([]).train.epochs or MOST_EPOCHS
    return Halving(
        plan.sweep.name,
        folder,
        time_attr="epoch",  # a restarted trial counts its reports anew; its epochs go on
        max_t=epochs + 1,
        grace_period=asha.grace_epochs,
        reduction_factor=asha.reduction,
    )


def planned_trials(plan: SweepPlan) -> int:
    """How many trials a sweep has."""
    sweep = plan.sweep
    if sweep.is_comparison:
        return len(sweep.variants) * len(sweep.seeds)
    if sweep.algorithm == "grid":
        sizes = [len(part.choices) if isinstance(part, Choices) else len(part.grid()) for part in sweep.space.values()]
        return math.prod(sizes)
    return sweep.trials
