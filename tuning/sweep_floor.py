"""The floor of a sweep: found once, given to all trials whose pseudo labels begin with it, and compared with the best trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainers.journal.outcome import FloorResult, compare_floor, read_validator_inputs
from trainers.loop.floor import has_floor
from trainers.run_result import Result
from trainers.training_run import run
from tuning.shared_features import changed_keys
from tuning.sweep import LEAVE_ONE_SOURCE_OUT
from tuning.trial import TrialJob, placed_recipe, tags_of
from tuning.trial_results import Trial

# In these trials have floors of their own, beside those that keep them from sharing features.
_DECIDE = ("uacr.prior", "network.modalities", "train.target_labels")


@dataclass(frozen=True)
class SweepFloor:
    """A floor beside the best trial. result: of the run that found it."""

    compared: FloorResult
    result: Result


def floor_before(job: TrialJob) -> Result | None:
    """Find the floor of all trials, before they start; None where they do not share their features, or differ in what it sees.

    Raises RunFailed: there is no floor.
    """
    sweep = job.plan.sweep
    is_search = not sweep.is_comparison and sweep.objective != LEAVE_ONE_SOURCE_OUT
    if job.packing.device is None or not is_search or changed_keys(job.plan).intersection(_DECIDE):
        return None
    return _find(job, sweep.name, [f"selection.validator={sweep.objective}"])


def compared_with(job: TrialJob, best: Trial, found: Result | None) -> SweepFloor | None:
    """The floor, and whether it is preferred to the best trial's chosen epoch; None if its runs have none.

    Args:
        found: that of all trials; None: the best trial's is found, in a run of its own.

    Raises RunFailed: there is no floor.
    """
    result = found or _find(job, best.name, best.overrides)
    if result is None:
        return None
    epoch = read_validator_inputs(Path(str(best.content["checkpoint"])))
    compared = compare_floor(placed_recipe(job, best.name, best.overrides), result.folder, epoch)
    assert compared is not None
    return SweepFloor(compared, result)


def _find(job: TrialJob, name: str, overrides: list[str]) -> Result | None:
    recipe = placed_recipe(job, name, overrides)
    return run(recipe, tags=tags_of(job), register=False, floor_only=True) if has_floor(recipe) else None
