"""Pictures of a sweep: PNG files, and the same on its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from trainers.reports import charts
from tuning.sweep import Choices, Sweep
from tuning.trial_results import Trial

_WIDTH = 9.0  # inches
_COLOURS = "viridis"
_LONGEST_NAME = 32  # characters of a variant's name at an axis


def measure(rows: Sequence[dict[str, Any]]) -> tuple[str, Callable[[float | None], str]]:
    """What variants are compared by: target accuracy, or the score where the target has no labels; and its format."""
    labelled = any(row["target_accuracy_chosen"] is not None for row in rows)
    return ("target_accuracy_chosen", charts.percent) if labelled else ("score", charts.plain)


def mean_and_deviation(row: dict[str, Any], key: str, format: Callable[[float], str]) -> str:
    """`75.0 % ± 7.1 %` of a variant's row; – where there is no run."""
    if row[key] is None:
        return "–"
    deviation = row[f"{key}_sd"]
    return format(row[key]) + (f" ± {format(deviation)}" if deviation is not None else "")


def short(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def score_over_epochs(trials: list[Trial], best: Trial | None, file: Path) -> None:
    """Each trial's validator by epoch; the best trial's in orange."""
    with charts.new_figure(_WIDTH, 4.5) as figure:
        axes = figure.subplots()
        axes.set_title("Score by epoch, without target labels")
        for trial in sorted(trials, key=lambda trial: trial == best):
            points = [(r.epoch, r.metrics["selection/score"]) for r in trial.records if "selection/score" in r.metrics]
            if points:
                first = trial == best
                axes.plot(
                    *zip(*points, strict=True),
                    "o-",
                    color=charts.ORANGE if first else charts.BLUE,
                    alpha=1.0 if first else 0.4,
                )
        axes.set_xlabel("epoch" + (f" (orange: {best.name})" if best else ""))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        charts.save_png(figure, file)


def parallel_coordinates(sweep: Sweep, finished: list[Trial], best: Trial | None, file: Path) -> charts.Chart:
    """A line a trial over the searched keys and the score; the better, the lighter."""
    names = [*sweep.space, "score"]
    scores = np.array([trial.score for trial in finished])
    worst, top = float(np.nanmin(scores)), float(np.nanmax(scores))
    with charts.new_figure(max(_WIDTH, 1.9 * len(names)), 5.0) as figure:
        axes = figure.subplots()
        heights = np.array([_heights(sweep, key, finished) for key in sweep.space] + [_unit(scores)]).T
        palette = ScalarMappable(Normalize(worst, top or 1.0), _COLOURS)
        for trial, line in zip(finished, heights, strict=True):
            colour = palette.to_rgba(np.array(trial.score))
            axes.plot(range(len(names)), line, color=colour, linewidth=3.5 if trial == best else 1.5)
        axes.set_xticks(range(len(names)), [name.replace(".", ".\n") for name in names])
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.grid(axis="x")
        for position, key in enumerate(sweep.space):
            part = sweep.space[key]
            ends = (part.choices[0], part.choices[-1]) if isinstance(part, Choices) else (part.low, part.high)
            _ends(axes, position, *ends)
        _ends(axes, len(names) - 1, worst, top)
        figure.colorbar(palette, ax=axes, label="score")
        title = "Trials by their values, coloured by score"
        picture = charts.svg(
            figure, f"{title}: a line a trial over {', '.join(names)}; scores {worst:.3g} to {top:.3g}"
        )
        axes.set_title(title)
        charts.save_png(figure, file)
    return charts.Chart(title, picture)


def importance(shares: dict[str, float], file: Path) -> None:
    """Bars of the keys' importances."""
    names = sorted(shares, key=lambda name: shares[name])
    with charts.new_figure(_WIDTH, 1.6 + 0.45 * len(names)) as figure:
        axes = figure.subplots()
        axes.set_title("Importance of the searched keys for the score (fANOVA)")
        axes.bar_label(axes.barh(names, [shares[name] for name in names], color=charts.BLUE), fmt="%.2f", padding=4)
        axes.set_xlim(0, 1)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        charts.save_png(figure, file)


def comparison(rows: Sequence[dict[str, Any]], file: Path) -> charts.Chart | None:
    """Mean and standard deviation over the seeds: target accuracy, or the score where the target has no labels.

    Args:
        rows: of `variant_rows`.
    """
    key, format = measure(rows)
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    title = "Score" if key == "score" else "Target accuracy of the checkpoint chosen without labels"
    with charts.new_figure(_WIDTH, 1.6 + 0.42 * len(known)) as figure:
        axes = figure.subplots()
        for place, row in enumerate(known):
            bars = axes.errorbar(row[key], place, xerr=row[f"{key}_sd"] or 0.0, fmt="o", color=charts.BLUE, capsize=4)
            charts.titled(bars.lines[0], f"{row['variant']}: {mean_and_deviation(row, key, format)}")
        axes.set_yticks(range(len(known)), [_clipped(row["variant"]) for row in known])
        axes.margins(y=0.5 / max(1, len(known)))
        axes.grid(axis="x")
        if key != "score":
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        said = "; ".join(f"{row['variant']} {format(row[key])}" for row in reversed(known))
        picture = charts.svg(figure, f"{title}, best first: {said}")
        axes.set_title(title)
        charts.save_png(figure, file)
    return charts.Chart(title, picture) if known else None


def score_by_value(sweep: Sweep, finished: list[Trial], best: Trial | None) -> list[charts.Chart]:
    """A chart a searched key: score by its value; the best trial's is a diamond."""
    known = [trial for trial in finished if np.isfinite(trial.score)]
    return [_score_by(sweep, key, known, best) for key in sweep.space] if known else []


def _score_by(sweep: Sweep, key: str, trials: list[Trial], best: Trial | None) -> charts.Chart:
    part = sweep.space[key]
    with charts.new_figure() as figure:
        axes = figure.subplots()
        for trial in sorted(trials, key=lambda trial: trial == best):
            value = trial.config[key]
            place = part.choices.index(value) if isinstance(part, Choices) else value
            colour, marker = (charts.VERMILION, "D") if trial == best else (charts.BLUE, "o")
            (point,) = axes.plot(place, trial.score, color=colour, marker=marker)
            charts.titled(point, f"{trial.name}: {key} {value}, score {charts.plain(trial.score)}")
        if isinstance(part, Choices):
            axes.set_xticks(range(len(part.choices)), [_clipped(str(choice)) for choice in part.choices])
            axes.set_xlim(-0.5, len(part.choices) - 0.5)
        elif part.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        charts.format_y_axis(axes, charts.FITTED)
        axes.set_ylabel("score")
        return charts.Chart(key, charts.svg(figure, f"Score by {key}, a point a trial"))


def _heights(sweep: Sweep, key: str, finished: list[Trial]) -> np.ndarray:
    """Places of the trials' values, 0 to 1, in the key's range."""
    part = sweep.space[key]
    values = [trial.config[key] for trial in finished]
    if isinstance(part, Choices):
        return np.array([part.choices.index(value) for value in values]) / max(1, len(part.choices) - 1)
    ends = np.array([part.low, part.high, *values], float)
    placed = np.log(ends) if part.log else ends
    return (placed[2:] - placed[0]) / (placed[1] - placed[0])


def _unit(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _ends(axes: Axes, position: int, low: Any, high: Any) -> None:
    axes.annotate(short(low), (position, -0.03), ha="center", va="top", fontsize=9)
    axes.annotate(short(high), (position, 1.03), ha="center", va="bottom", fontsize=9)


def _clipped(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
