"""What people look at after a sweep: table, JSON, pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from trainers.reports.figures import BLUE, ORANGE, figure_file
from tuning.report_page import write_report
from tuning.sweep import Choices, Sweep, SweepPlan
from tuning.trial_results import Trial, result_tree, variant_rows

_COLOURS = "viridis"


def draw_report(plan: SweepPlan, trials: list[Trial], best: Trial | None, folder: Path) -> None:
    """Write table.md, sweep.json, the page and the pictures into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sweep = plan.sweep
    (folder / "table.md").write_text(table(sweep, trials, best) + "\n", encoding="utf-8")
    tree = json.dumps(result_tree(sweep, trials, best), indent=1, ensure_ascii=False)
    (folder / "sweep.json").write_text(tree + "\n", encoding="utf-8")
    score_over_epochs(trials, best, folder / "score_over_epochs.png")
    if sweep.is_comparison:
        comparison(sweep, trials, folder / "comparison.png")
        write_report(plan, trials, best, {}, folder)
        return
    finished = [trial for trial in trials if trial.finished]
    parallel_coordinates(sweep, finished, best, folder / "parallel_coordinates.png")
    shares = importances(sweep, finished)
    if shares:
        importance(shares, folder / "importance.png")
    write_report(plan, trials, best, shares, folder)


def table(sweep: Sweep, trials: list[Trial], best: Trial | None) -> str:
    """Markdown. Accuracies by target labels are there for the reader; nothing was chosen by them."""
    if sweep.is_comparison:
        head = ["variant", "runs", "score", "target accuracy, chosen", "oracle", "macro-F1", "source accuracy"]
        keys = ("score", "target_accuracy_chosen", "target_accuracy_oracle", "target_macro_f1", "source_accuracy")
        rows = [
            [row["variant"], str(row["runs"]), *(_spread(row[key], row[f"{key}_sd"], key) for key in keys)]
            for row in variant_rows(sweep, trials)
        ]
        return _markdown(head, rows)
    head = ["trial", *sweep.space, "epochs", "score", "target accuracy, chosen", "oracle", ""]
    rows = []
    for trial in trials:
        told = trial.content
        mark = "best" if best is not None and trial.name == best.name else "" if trial.finished else trial.status
        rows.append(
            [
                trial.name.removeprefix(f"{sweep.name}-"),
                *(_short(trial.config.get(key)) for key in sweep.space),
                str(told.get("epochs") or len(trial.records)),
                _short(told.get("score")),
                _percent(told.get("target_accuracy_chosen")),
                _percent(told.get("target_accuracy_oracle")),
                mark,
            ]
        )
    return _markdown(head, rows)


def score_over_epochs(trials: list[Trial], best: Trial | None, file: Path) -> None:
    """Each trial's validator by epoch; the best trial's in orange."""
    with figure_file(file, 4.5) as figure:
        axes = figure.subplots()
        axes.set_title("Score by epoch, without target labels")
        for trial in sorted(trials, key=lambda trial: best is not None and trial.name == best.name):
            points = [(r.epoch, r.metrics["selection/score"]) for r in trial.records if "selection/score" in r.metrics]
            if points:
                first = best is not None and trial.name == best.name
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=ORANGE if first else BLUE, alpha=1.0 if first else 0.4, marker="o", label=None)
        axes.set_xlabel("epoch" + (f" (orange: {best.name})" if best else ""))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def parallel_coordinates(sweep: Sweep, finished: list[Trial], best: Trial | None, file: Path) -> None:
    """A line a trial over the searched keys and the score; the better, the lighter."""
    names = [*sweep.space, "score"]
    scores = np.array([trial.score for trial in finished])
    norm = Normalize(float(np.nanmin(scores)), float(np.nanmax(scores)) or 1.0)
    with figure_file(file, 5.0, width=max(9.0, 1.9 * len(names))) as figure:
        axes = figure.subplots()
        axes.set_title("Trials by their values, coloured by score")
        heights = np.array([_heights(sweep, key, finished) for key in sweep.space] + [_unit(scores)]).T
        palette = ScalarMappable(norm, _COLOURS)
        for trial, line in zip(finished, heights, strict=True):
            first = best is not None and trial.name == best.name
            axes.plot(
                range(len(names)), line, color=palette.to_rgba(np.array(trial.score)), linewidth=3.5 if first else 1.5
            )
        axes.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.grid(axis="x")
        for position, key in enumerate(sweep.space):
            _ends(axes, position, *_labels(sweep, key, finished))
        _ends(axes, len(names) - 1, _short(float(np.nanmin(scores))), _short(float(np.nanmax(scores))))
        figure.colorbar(palette, ax=axes, label="score")


def importances(sweep: Sweep, finished: list[Trial]) -> dict[str, float]:
    """Share of the scores' variance that each key explains by itself (fANOVA, Hutter et al., ICML 2014).

    Returns:
        key → share; empty for fewer than four trials, or scores that are all the same.
    """
    known = [trial for trial in finished if np.isfinite(trial.score)]
    if len(known) < 4 or len({trial.score for trial in known}) < 2:
        return {}
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


def importance(shares: dict[str, float], file: Path) -> None:
    """Bars of the keys' importances."""
    names = sorted(shares, key=lambda name: shares[name])
    with figure_file(file, 1.6 + 0.45 * len(names)) as figure:
        axes = figure.subplots()
        axes.set_title("Importance of the searched keys for the score (fANOVA)")
        axes.barh(names, [shares[name] for name in names], color=BLUE)
        axes.set_xlim(0, 1)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for row, name in enumerate(names):
            axes.annotate(f"{shares[name]:.2f}", (shares[name], row), (4, 0), textcoords="offset points", va="center")


def comparison(sweep: Sweep, trials: list[Trial], file: Path) -> None:
    """Mean and standard deviation over the seeds: target accuracy, or the score where the target has no labels."""
    rows = variant_rows(sweep, trials)
    labelled = any(row["target_accuracy_chosen"] is not None for row in rows)
    key = "target_accuracy_chosen" if labelled else "score"
    rows = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    with figure_file(file, 1.6 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        axes.set_title("Target accuracy of the checkpoint chosen without labels" if labelled else "Score")
        names, values = [row["variant"] for row in rows], [row[key] for row in rows]
        axes.errorbar(values, names, xerr=[row[f"{key}_sd"] or 0.0 for row in rows], fmt="o", color=BLUE, capsize=4)
        axes.grid(axis="x")


def _heights(sweep: Sweep, key: str, finished: list[Trial]) -> np.ndarray:
    part = sweep.space[key]
    values = [trial.config[key] for trial in finished]
    if isinstance(part, Choices):
        return np.array([part.choices.index(value) for value in values]) / max(1, len(part.choices) - 1)
    ends = np.array([part.low, part.high, *values], float)
    placed = np.log(ends) if part.log else ends
    return (placed[2:] - placed[0]) / (placed[1] - placed[0])


def _labels(sweep: Sweep, key: str, finished: list[Trial]) -> tuple[str, str]:
    part = sweep.space[key]
    if isinstance(part, Choices):
        return _short(part.choices[0]), _short(part.choices[-1])
    return _short(part.low), _short(part.high)


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _ends(axes: Axes, position: int, low: str, high: str) -> None:
    axes.annotate(low, (position, -0.03), ha="center", va="top", fontsize=9)
    axes.annotate(high, (position, 1.03), ha="center", va="bottom", fontsize=9)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, " | ".join("-" * max(3, width) for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _spread(mean: float | None, deviation: float | None, key: str) -> str:
    if mean is None:
        return "–"
    scale, digits = (1.0, 3) if key == "score" else (100.0, 1)
    tail = f" ± {scale * deviation:.{digits}f}" if deviation is not None else ""
    return f"{scale * mean:.{digits}f}{tail}"
