"""The report of a sweep: table, JSON, pictures and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from datasets_manifest.files import whole_folder
from trainers.journal.outcome import FloorResult
from trainers.reports.page import REPORT
from tuning import report_pictures as pictures
from tuning.idle_keys import idle_keys
from tuning.report_page import sweep_page, trials_table, variants_table
from tuning.sweep import Choices, Sweep, SweepPlan
from tuning.trial_results import Trial, floor_line, result_tree, variant_rows

IMPORTANCE_TRIALS = 10


def draw_report(
    plan: SweepPlan,
    trials: list[Trial],
    best: Trial | None,
    report: Path,
    shared: str | None = None,
    floor: FloorResult | None = None,
) -> None:
    """Write table.md, sweep.json, the page and the pictures into the folder `report`; one that is there is replaced.

    Args:
        best: None in a comparison, or where no trial finished.
        shared: the features that all trials were trained on, in words.
        floor: of the best trial's recipe, None if it has none.
    """
    with whole_folder(report, replace=True) as folder:
        _draw(plan, trials, best, folder, shared, floor)


def _draw(
    plan: SweepPlan,
    trials: list[Trial],
    best: Trial | None,
    folder: Path,
    shared: str | None,
    floor: FloorResult | None,
) -> None:
    sweep = plan.sweep
    finished = [trial for trial in trials if trial.finished]
    (folder / "table.md").write_text(summary(plan, trials, best, floor) + "\n", encoding="utf-8")
    tree = result_tree(sweep, trials, best, floor) | {"shared_features": shared}
    (folder / "sweep.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures.score_over_epochs(trials, best, folder / "score_over_epochs.png")
    shares: dict[str, float] = {}
    wide = None
    if sweep.is_comparison:
        wide = pictures.comparison(variant_rows(sweep, trials), folder / "comparison.png")
    elif finished:
        wide = pictures.parallel_coordinates(sweep, finished, best, folder / "parallel_coordinates.png")
        idle = idle_keys(plan, finished)
        shares = {key: share for key, share in importances(sweep, finished).items() if key not in idle}
        if shares:
            pictures.importance(shares, folder / "importance.png")
    (folder / REPORT).write_text(
        sweep_page(plan, trials, best, shares, wide, idle_lines(plan, finished), shared, floor), encoding="utf-8"
    )


def idle_lines(plan: SweepPlan, trials: list[Trial]) -> list[str]:
    """A sentence for each searched key that cannot have acted."""
    return [f"{key} cannot have acted: {why}" for key, why in idle_keys(plan, trials).items()]


def summary(plan: SweepPlan, trials: list[Trial], best: Trial | None, floor: FloorResult | None) -> str:
    """Markdown: the table of trials, below it the floor beside the best one, and searched keys that cannot have acted."""
    below = [*([floor_line(floor, best)] if floor else []), *idle_lines(plan, trials)]
    return "\n\n".join([table(plan.sweep, trials, best), *below])


def table(sweep: Sweep, trials: list[Trial], best: Trial | None) -> str:
    """Markdown. Accuracies by target labels are there for the reader; nothing was chosen by them."""
    head, rows = variants_table(sweep, trials) if sweep.is_comparison else trials_table(sweep, trials, best)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, " | ".join("-" * max(3, width) for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def importances(sweep: Sweep, finished: list[Trial]) -> dict[str, float]:
    """Share of the scores' variance that each key explains by itself (fANOVA, Hutter et al., ICML 2014).

    Returns:
        key → share; empty for fewer than ten trials, in which chance decides, or scores that are all the same.
    """
    known = [trial for trial in finished if np.isfinite(trial.score)]
    if len(known) < IMPORTANCE_TRIALS or len({trial.score for trial in known}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in known:
        params: dict[str, Any] = {}
        spaces: dict[str, optuna.distributions.BaseDistribution] = {}
        for key, part in sweep.space.items():
            value: Any = trial.config[key]
            if isinstance(part, Choices):
                params[key] = part.choices.index(value)
                spaces[key] = optuna.distributions.IntDistribution(0, max(1, len(part.choices) - 1))
            else:
                params[key] = value
                spaces[key] = optuna.distributions.FloatDistribution(part.low, part.high, log=part.log)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=trial.score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.seed)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
