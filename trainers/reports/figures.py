"""Pictures of a run as PNG files, for MLflow; the page draws from the same series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from trainers.journal.journal import EpochRecord
from trainers.m2can.losses import TERMS
from trainers.reports import charts
from trainers.validators.checked import CHECKED
from trainers.validators.expected import EXPECTED

_WIDTH = 9.0  # inches: 1350 pixels, still readable when shown at 900


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    series: Sequence[charts.Series]
    scale: charts.Scale = charts.FITTED


def series_of(records: Sequence[EpochRecord], metric: str, name: str, kind: int) -> charts.Series:
    """A metric by epoch, where it was recorded."""
    return charts.Series(name, [(float(r.epoch), r.metrics[metric]) for r in records if metric in r.metrics], kind)


def loss_panels(records: Sequence[EpochRecord]) -> list[Panel]:
    """Every recorded loss term by itself, for they differ by orders of magnitude; the total first, in the text's colour."""
    names = {name.removeprefix("loss/") for r in records for name in r.metrics if name.startswith("loss/")}
    labels = {"total": "total: sum of the terms"} | {term.name: term.label for term in TERMS}
    order = [name for name in labels if name in names] + sorted(names - set(labels))
    return [
        Panel(label, [series_of(records, f"loss/{name}", label, -1 if name == "total" else 0)])
        for name, label in ((name, labels.get(name, name)) for name in order)
    ]


def accuracy_panels(records: Sequence[EpochRecord]) -> list[Panel]:
    """Validation accuracy of the target, of all sources, and of each if there are several; the selection score."""
    end = "/val/accuracy"
    metrics = {name for r in records for name in r.metrics if name.startswith("source/") and name.endswith(end)}
    sources = sorted(metrics - {f"source{end}"})
    series = [series_of(records, f"target{end}", "target", 0), series_of(records, f"source{end}", "sources", 1)]
    series.append(series_of(records, EXPECTED, "target, expected", 6))
    series.append(series_of(records, CHECKED, "target, held-out labels", 5))
    if len(sources) > 1 or f"source{end}" not in metrics:
        for kind, metric in enumerate(sources, start=2):
            name = metric.removeprefix("source/").removesuffix(end)
            series.append(series_of(records, metric, name, kind))
    score = series_of(records, "selection/score", "score", 2)
    return [
        Panel("Validation accuracy", series, charts.Scale(percent=True)),
        Panel("Selection score, seen without target labels", [score]),
    ]


def pseudo_label_panel(records: Sequence[EpochRecord]) -> Panel:
    """UACR: precision of the selected pseudo labels, of all, and the share that was selected."""
    series = [
        series_of(records, "uacr/precision", "right among selected", 0),
        series_of(records, "uacr/accuracy", "right among all", 1),
        series_of(records, "uacr/kept_share", "selected", 6),
    ]
    return Panel("Pseudo labels after each epoch", series, charts.SHARES)


def loss_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """A panel for each weighted loss term."""
    panels = loss_panels(records) or [Panel("Losses", [])]
    _draw_panels(panels, records, file, columns=min(3, len(panels)), height=0.5 + 2.5 * -(-len(panels) // 3))


def accuracy_curves(records: Sequence[EpochRecord], chosen_epoch: int | None, file: Path) -> None:
    """Validation accuracy of target and sources above, the selection score below; the chosen epoch is marked."""
    _draw_panels(accuracy_panels(records), records, file, height=6.2, ratios=(2.2, 1), chosen_epoch=chosen_epoch)


def selection_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """Precision and share of the pseudo labels, by epoch."""
    _draw_panels([pseudo_label_panel(records)], records, file, height=4.2)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], file: Path) -> None:
    """Counts and shares of the true class [true, predicted]; colour is the share, so small classes are seen."""
    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    n = len(classes)
    side = min(9.5, max(3.2, 0.95 * n))
    with charts.new_figure(side + 3.4, side + 1.4) as figure:
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
        charts.save_png(figure, file)


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
    with charts.new_figure(_WIDTH, 4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        left.set_title("Precision by score")
        right.set_title("Precision of what is kept")
        left.set_ylabel("pseudo labels that are right")
        if not n:
            _write_note(left, "no pseudo labels")
            return charts.save_png(figure, file)
        parts = draw_precision(left, scores, correct)
        for place, part in enumerate(parts):
            wide = len(parts) > 5 and len(part) > 999
            left.text(place, 0.02, f"{len(part):,}", ha="center", va="bottom", fontsize=9, rotation=90 if wide else 0)
        left.set_xticks(range(len(parts)), [f"{scores[part[-1]]:.2g}" for part in parts], rotation=45, fontsize=9)
        left.set_xlabel("score from (left = surest); number of records in the bar")
        # The first few records say nothing yet: the curve begins at a hundredth of them, or ten.
        kept = np.arange(1, n + 1)[min(n - 1, max(9, n // 100)) :]
        curve = np.cumsum(correct)[kept - 1] / kept
        right.plot(kept / n, curve, color=charts.BLUE, marker="o" if n <= 10 else "")
        right.set_xlim(0.0, 1.0)
        right.set_ylim(max(0.0, np.floor(curve.min() * 10 - 0.5) / 10), 1.005)
        right.set_xlabel("share kept, surest first")
        right.xaxis.set_major_formatter(PercentFormatter(1.0))
        charts.format_y_axis(right, charts.SHARES)
        every = float(correct.mean())
        right.axhline(every, **charts.RULE)
        right.annotate(
            f"all: {charts.percent(every)}",
            (0.0, every),
            (5, -4),
            textcoords="offset points",
            va="top",
            color=charts.SOFT,
        )
        return charts.save_png(figure, file)


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
        (bar,) = axes.bar(place, precision, color=charts.SKY, width=0.86)
        charts.titled(bar, f"score {scores[part[0]]:.3g} to {scores[part[-1]]:.3g}: {charts.percent(precision)} right")
    axes.axhline(float(correct.mean()), **charts.RULE)
    axes.set_ylim(0.0, 1.02)
    charts.format_y_axis(axes, charts.SHARES)
    return parts


def _draw_panels(
    panels: Sequence[Panel],
    records: Sequence[EpochRecord],
    file: Path,
    *,
    height: float,
    columns: int = 1,
    ratios: Sequence[float] | None = None,
    chosen_epoch: int | None = None,
) -> None:
    """One file of all panels; several curves are named beside their axes, with their last values."""
    epochs = charts.Epochs((records[0].epoch, records[-1].epoch) if records else None)
    with charts.new_figure(_WIDTH, height) as figure:
        rows = -(-len(panels) // columns)
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            drawn = [one for one in panel.series if one.points]
            charts.draw_curves(axes, drawn, panel.scale, epochs)
            axes.set_title(panel.title, fontsize=11)
            if chosen_epoch is not None:
                axes.axvline(chosen_epoch, **charts.RULE)
            if len(panel.series) > 1 and drawn:
                named = [f"{one.name} {panel.scale.format(one.points[-1][1])}" for one in drawn]
                lines = axes.get_legend_handles_labels()[0]
                axes.legend(lines, named, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.6)
            if not drawn:
                _write_note(axes, "nothing of this was recorded")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if chosen_epoch is not None:
            at_the_end = chosen_epoch > np.mean([record.epoch for record in records])
            grid[0].annotate(
                f"chosen: epoch {chosen_epoch}",
                (chosen_epoch, 0.0),
                (-5 if at_the_end else 5, 5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=charts.SOFT,
                ha="right" if at_the_end else "left",
            )
        figure.supxlabel("epoch", fontsize=11, color=charts.SOFT)
        charts.save_png(figure, file)


def _write_note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=charts.SOFT)
