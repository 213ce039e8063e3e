"""Pictures of a run as PNG files, for MLflow; the page draws from the same series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from trainers.reports.charts import (
    BLUE,
    RULE,
    SHARES,
    SKY,
    SOFT,
    Epochs,
    Scale,
    Series,
    draw_curves,
    letter_y,
    new_figure,
    percent,
    save_png,
    titled,
)
from trainers.tracking.journal import EpochRecord

_WIDTH = 9.0  # inches: 1350 pixels, still readable when shown at 900
TERMS = {
    "total": "total: sum of the terms",
    "task": "task: cross-entropy",
    "cmcfa": "CMCFA: text ↔ picture",
    "cdcfa": "CDCFA: domain ↔ domain",
    "cdafa": "CDAFA: adversarial",
    "mcc": "MCC: class confusion",
    "moments": "moment matching",
    "imitation": "text and picture heads",
}


def series_of(records: Sequence[EpochRecord], metric: str, name: str, kind: int) -> Series:
    """A metric by epoch, where it was recorded."""
    return Series(name, [(float(r.epoch), r.metrics[metric]) for r in records if metric in r.metrics], kind)


def term_series(records: Sequence[EpochRecord]) -> list[Series]:
    """Every recorded loss term, the total first, in the text's colour."""
    names = {name.removeprefix("loss/") for r in records for name in r.metrics if name.startswith("loss/")}
    order = [name for name in TERMS if name in names] + sorted(names - set(TERMS))
    return [series_of(records, f"loss/{name}", TERMS.get(name, name), -1 if name == "total" else 0) for name in order]


def accuracy_series(records: Sequence[EpochRecord]) -> list[Series]:
    """Validation accuracy of the target, of all sources, and of each if there are several."""
    end = "/val/accuracy"
    metrics = {name for r in records for name in r.metrics if name.startswith("source/") and name.endswith(end)}
    sources = sorted(metrics - {f"source{end}"})
    series = [series_of(records, f"target{end}", "target", 0), series_of(records, f"source{end}", "sources", 1)]
    if len(sources) > 1 or f"source{end}" not in metrics:
        named = [metric.removeprefix("source/").removesuffix(end) for metric in sources]
        series += [series_of(records, *pair, i + 2) for i, pair in enumerate(zip(sources, named, strict=True))]
    return series


def score_series(records: Sequence[EpochRecord]) -> list[Series]:
    """The score by which the epoch is chosen."""
    return [series_of(records, "selection/score", "score", 2)]


def pseudo_label_series(records: Sequence[EpochRecord]) -> list[Series]:
    """Precision of the selected pseudo labels, of all, and the share that was selected."""
    return [
        series_of(records, "uacr/precision", "right among selected", 0),
        series_of(records, "uacr/accuracy", "right among all", 1),
        series_of(records, "uacr/kept_share", "selected", 6),
    ]


def loss_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """One panel for each weighted loss term, the total first: the terms differ by orders of magnitude."""
    terms = term_series(records)
    columns = min(3, max(1, len(terms)))
    rows = max(1, -(-len(terms) // columns))
    with new_figure(_WIDTH, 0.5 + 2.5 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, term in zip(grid[: len(terms)], terms, strict=True):
            draw_curves(axes, [term], epochs=Epochs(_ends(records)))
            axes.set_title(term.name, fontsize=11)
        for axes in grid[len(terms) :]:
            axes.set_axis_off()
        figure.supxlabel("epoch", fontsize=11, color=SOFT)
        if not terms:
            _say(grid[0], "no losses were recorded")
        save_png(figure, file)


def accuracy_curves(records: Sequence[EpochRecord], chosen_epoch: int | None, file: Path) -> None:
    """Validation accuracy of target and sources above, the selection score below; the chosen epoch is marked."""
    with new_figure(_WIDTH, 6.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        series = accuracy_series(records)
        draw_curves(upper, series, Scale(percent=True), Epochs(_ends(records)))
        draw_curves(lower, score_series(records), epochs=Epochs(_ends(records)))
        upper.set_title("Validation accuracy")
        lower.set_title("Selection score (seen without target labels)")
        lower.set_xlabel("epoch")
        if chosen_epoch is not None:
            for axes in (upper, lower):
                axes.axvline(chosen_epoch, **RULE)
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            upper.annotate(f"chosen: epoch {chosen_epoch}", (chosen_epoch, 0.0), (4, 5), color=SOFT, **place)
        _legend(upper, series, "no validation accuracy was recorded")
        save_png(figure, file)


def selection_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """UACR over the epochs: share of the target that was selected, precision of its pseudo labels, precision of all."""
    with new_figure(_WIDTH, 4.2) as figure:
        axes = figure.subplots()
        series = pseudo_label_series(records)
        draw_curves(axes, series, SHARES, Epochs(_ends(records)))
        axes.set_title("Pseudo labels after each epoch")
        axes.set_xlabel("epoch")
        _legend(axes, series, "no pseudo labels were selected")
        save_png(figure, file)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], file: Path) -> None:
    """Counts and shares of the true class [true, predicted]; colour is the share, so small classes are seen."""
    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    n = len(classes)
    side = min(9.5, max(3.2, 0.95 * n))
    with new_figure(side + 3.4, side + 1.4) as figure:
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
        axes.set_xticks(range(n), names, rotation=35 if n > 4 else 0, ha="right" if n > 4 else "center")
        axes.set_yticks(range(n), [f"{name}\n{total:,.0f}" for name, total in zip(names, totals[:, 0], strict=True)])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true class and its records")
        size = float(np.clip(15 - 0.6 * n, 6, 13))
        for row, column in np.ndindex(n, n) if n <= 20 else ():
            share, count = shares[row, column], f"{counts[row, column]:,.0f}"
            said = f"{count}\n{share:.0%}" if n <= 12 else count
            colour = "white" if share > 0.55 else "black"
            axes.text(column, row, said, ha="center", va="center", color=colour, fontsize=size)
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, format=PercentFormatter(1.0))
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
        right = float(np.trace(counts) / counts.sum()) if counts.sum() else 0.0
        axes.set_title(f"Confusion matrix, {right:.1%} of {counts.sum():,.0f} right")
        save_png(figure, file)


def pseudo_label_precision(scores: np.ndarray, correct: np.ndarray, file: Path) -> None:
    """How far a score tells right pseudo labels from wrong ones.

    Left: precision in bins of equal numbers of records, by score. Right: precision of what is kept if only the records
    with the highest scores are kept, by their share.

    Args:
        scores: of N records, higher = surer.
        correct: whether the pseudo label is right, N.
    """
    scores, correct = by_score(scores, correct)
    n = len(scores)
    with new_figure(_WIDTH, 4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        left.set_title("Precision by score")
        right.set_title("Precision of what is kept")
        left.set_ylabel("pseudo labels that are right")
        if not n:
            _say(left, "no pseudo labels")
            return save_png(figure, file)
        parts = draw_precision(left, scores, correct)
        for place, part in enumerate(parts):
            wide = len(parts) > 5 and len(part) > 999
            left.text(place, 0.02, f"{len(part):,}", ha="center", va="bottom", fontsize=9, rotation=90 if wide else 0)
        left.set_xticks(range(len(parts)), [f"{scores[part[-1]]:.2g}" for part in parts], rotation=45, fontsize=9)
        left.set_xlabel("score from (left = surest); number of records in the bar")
        # The first few records say nothing yet: the curve begins at a hundredth of them, or ten.
        kept = np.arange(1, n + 1)[min(n - 1, max(9, n // 100)) :]
        curve = np.cumsum(correct)[kept - 1] / kept
        right.plot(kept / n, curve, color=BLUE, marker="o" if n <= 10 else "")
        right.set_xlim(0.0, 1.0)
        right.set_ylim(max(0.0, np.floor(curve.min() * 10 - 0.5) / 10), 1.005)
        right.set_xlabel("share kept, surest first")
        right.xaxis.set_major_formatter(PercentFormatter(1.0))
        letter_y(right, SHARES)
        every = float(correct.mean())
        right.axhline(every, **RULE)
        right.annotate(
            f"all: {percent(every)}", (0.0, every), (5, -4), textcoords="offset points", va="top", color=SOFT
        )
        return save_png(figure, file)


def by_score(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without rows whose score is not a number, surest first."""
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    known = np.isfinite(scores)
    order = np.argsort(-scores[known], kind="stable")
    return scores[known][order], correct[known][order]


def draw_precision(axes: Axes, scores: np.ndarray, correct: np.ndarray) -> list[np.ndarray]:
    """Bars of the precision in up to ten parts of equal size. Returns each part's rows.

    Args:
        scores, correct: of `by_score`, at least one row.
    """
    parts = np.array_split(np.arange(len(scores)), min(10, len(scores)))
    for place, part in enumerate(parts):
        precision = float(correct[part].mean())
        (bar,) = axes.bar(place, precision, color=SKY, width=0.86)
        titled(bar, f"score {scores[part[0]]:.3g} to {scores[part[-1]]:.3g}: {percent(precision)} right")
    axes.axhline(float(correct.mean()), **RULE)
    axes.set_ylim(0.0, 1.02)
    letter_y(axes, SHARES)
    return parts


def _ends(records: Sequence[EpochRecord]) -> tuple[float, float] | None:
    return (records[0].epoch, records[-1].epoch) if records else None


def _legend(axes: Axes, series: Sequence[Series], nothing: str) -> None:
    """Each curve's name and last value beside the axes, or that there are none."""
    lines = axes.get_legend_handles_labels()[0]
    named = [f"{one.name} {percent(one.points[-1][1])}" for one in series if one.points]
    if named:
        axes.legend(lines, named, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.6)
    else:
        _say(axes, nothing)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT)
