"""Pictures of a run for MLflow and the report. Colours tell apart also to the colour-blind (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from trainers.tracking.journal import EpochRecord

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
_GREY = "#6B7280"
_DPI = 150
_WIDTH = 9.0  # inches: 1350 pixels, still readable when shown at 900
_STYLE: Any = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#9CA3AF",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E5E7EB",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
}
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


def loss_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """One panel for each weighted loss term, the total first: the terms differ by orders of magnitude."""
    names = sorted({name.removeprefix("loss/") for r in records for name in r.metrics if name.startswith("loss/")})
    order = [name for name in TERMS if name in names]
    names = order + [name for name in names if name not in order]
    columns = min(3, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    with figure_file(file, height=0.5 + 2.5 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for place, (axes, name) in enumerate(zip(grid[: len(names)], names, strict=True)):
            epochs, values = _series(records, f"loss/{name}")
            _line(axes, epochs, values, BLACK if name == "total" else BLUE)
            axes.set_title(TERMS.get(name, name), fontsize=11)
            axes.tick_params(labelbottom=place + columns >= len(names))
            _epoch_axis(axes, records)
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        figure.supxlabel("epoch", fontsize=11, color="#333333")
        if not names:
            _say(grid[0], "no losses were recorded")


def accuracy_curves(records: Sequence[EpochRecord], chosen_epoch: int | None, file: Path) -> None:
    """Validation accuracy of target and sources above, the selection score below; the chosen epoch is marked."""
    with figure_file(file, height=6.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        each_source = sorted(
            {n for r in records for n in r.metrics if n.startswith("source/") and n.endswith("/val/accuracy")}
            - {"source/val/accuracy"}
        )
        curves = [("source/val/accuracy", "sources", VERMILION, 2.0)]
        # With one source the mean is that source.
        if len(each_source) > 1 or not any("source/val/accuracy" in r.metrics for r in records):
            curves = [
                (n, n.split("/", 1)[1].removesuffix("/val/accuracy"), VERMILION, 1.0) for n in each_source
            ] + curves
        curves.append(("target/val/accuracy", "target", BLUE, 2.6))
        labels = []
        for metric, label, colour, width in curves:
            epochs, values = _series(records, metric)
            if epochs:
                _line(upper, epochs, values, colour, width=width, alpha=1.0 if width >= 2 else 0.55)
                labels.append((values[-1], label, colour, width >= 2))
        upper.yaxis.set_major_formatter(PercentFormatter(1.0))
        upper.set_title("Validation accuracy")
        _name_at_the_end(upper, labels, max((r.epoch for r in records), default=1))
        _line(lower, *_series(records, "selection/score"), GREEN)
        lower.set_title("Selection score (seen without target labels)")
        lower.set_xlabel("epoch")
        _epoch_axis(lower, records)
        if chosen_epoch is not None:
            for axes in (upper, lower):
                axes.axvline(chosen_epoch, color=_GREY, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            upper.annotate(
                f"chosen: epoch {chosen_epoch}",
                (chosen_epoch, 0.0),
                (4, 5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=_GREY,
                fontsize=10,
            )
        if not labels:
            _say(upper, "no validation accuracy was recorded")


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], file: Path) -> None:
    """Counts and shares of the true class [true, predicted]; colour is the share, so small classes are seen."""
    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    n = len(classes)
    side = min(9.5, max(3.2, 0.95 * n))
    with figure_file(file, height=side + 1.4, width=side + 3.4) as figure:
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        names = [name if len(name) <= 18 else name[:17] + "…" for name in classes]
        axes.set_xticks(range(n), names, rotation=35 if n > 4 else 0, ha="right" if n > 4 else "center")
        axes.set_yticks(range(n), [f"{name}\n{total:,.0f}" for name, total in zip(names, totals[:, 0], strict=True)])
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true class, and its samples")
        size = float(np.clip(15 - 0.6 * n, 6, 13))
        for row in range(n) if n <= 20 else ():
            for column in range(n):
                share = shares[row, column]
                text = f"{counts[row, column]:,.0f}\n{share:.0%}" if n <= 12 else f"{counts[row, column]:,.0f}"
                colour = "white" if share > 0.55 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, format=PercentFormatter(1.0))
        bar.outline.set_visible(False)
        bar.set_label("share of the true class")
        right = float(np.trace(counts) / counts.sum()) if counts.sum() else 0.0
        axes.set_title(f"Confusion matrix, {right:.1%} of {counts.sum():,.0f} right")


def pseudo_label_precision(scores: np.ndarray, correct: np.ndarray, file: Path, bins: int = 10) -> None:
    """How far a score tells right pseudo labels from wrong ones.

    Left: precision in bins of equal numbers of samples, by score. Right: precision of what is kept if only the samples
    with the highest scores are kept, by their share.

    Args:
        scores: of N samples, higher = surer.
        correct: whether the pseudo label is right, N.
        file: PNG.
        bins: at most this many.
    """
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    known = np.isfinite(scores)
    order = np.argsort(-scores[known], kind="stable")
    scores, correct = scores[known][order], correct[known][order]
    n = len(scores)
    with figure_file(file, height=4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        left.set_title("Precision by score")
        right.set_title("Precision of what is kept")
        left.set_ylabel("pseudo labels that are right")
        if not n:
            return _say(left, "no pseudo labels")
        parts = [part for part in np.array_split(np.arange(n), min(bins, n)) if len(part)]
        precision = [float(correct[part].mean()) for part in parts]
        left.bar(range(len(parts)), precision, color=SKY, width=0.86)
        for place, part in enumerate(parts):
            wide = len(parts) > 5 and len(part) > 999
            left.text(place, 0.02, f"{len(part):,}", ha="center", va="bottom", fontsize=9, rotation=90 if wide else 0)
        left.set_xticks(range(len(parts)), [f"{scores[part[-1]]:.2g}" for part in parts], rotation=45, fontsize=9)
        left.set_xlabel("score from (left = surest); number of samples in the bar")
        left.set_ylim(0.0, 1.02)
        # The first few samples say nothing yet: the curve begins at a hundredth of them, or ten.
        kept = np.arange(1, n + 1)[min(n - 1, max(9, n // 100)) :]
        curve = np.cumsum(correct)[kept - 1] / kept
        right.plot(kept / n, curve, color=BLUE, marker="o" if n <= 10 else "")
        right.set_xlim(0.0, 1.0)
        right.set_ylim(max(0.0, np.floor(curve.min() * 10 - 0.5) / 10), 1.005)
        right.set_xlabel("share kept, surest first")
        right.xaxis.set_major_formatter(PercentFormatter(1.0))
        every = float(correct.mean())
        for axes in (left, right):
            axes.axhline(every, color=_GREY, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.annotate(f"all: {every:.1%}", (0.0, every), (5, -4), textcoords="offset points", va="top", color=_GREY)
    return None


def selection_curves(records: Sequence[EpochRecord], file: Path) -> None:
    """UACR over the epochs: share of the target that was selected, precision of its pseudo labels, precision of all."""
    with figure_file(file, height=4.2) as figure:
        axes = figure.subplots()
        curves = [
            ("uacr/kept_share", "selected", _GREY, 1.4),
            ("uacr/accuracy", "right among all", SKY, 2.0),
            ("uacr/precision", "right among selected", BLUE, 2.6),
        ]
        labels = []
        for metric, label, colour, width in curves:
            epochs, values = _series(records, metric)
            if epochs:
                _line(axes, epochs, values, colour, width=width)
                labels.append((values[-1], label, colour, width > 2))
        axes.set_ylim(0.0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title("Pseudo labels after each epoch")
        axes.set_xlabel("epoch")
        _epoch_axis(axes, records)
        _name_at_the_end(axes, labels, max((r.epoch for r in records), default=1))
        if not labels:
            _say(axes, "no pseudo labels were selected")


@contextmanager
def figure_file(file: Path, height: float, width: float = _WIDTH) -> Iterator[Figure]:
    """A figure of its own style, free of pyplot's process-wide state, saved as PNG at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
        yield figure
        file.parent.mkdir(parents=True, exist_ok=True)
        # No date and version in the file: the same numbers give the same bytes.
        figure.savefig(file, dpi=_DPI, metadata={"Software": None})


def _series(records: Sequence[EpochRecord], metric: str) -> tuple[list[int], list[float]]:
    rows = [(record.epoch, record.metrics[metric]) for record in records if metric in record.metrics]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _line(
    axes: Axes, epochs: list[int], values: list[float], colour: str, width: float = 2.0, alpha: float = 1.0
) -> None:
    # Points make a single epoch visible; over many they are noise.
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(epochs, values, color=colour, linewidth=width, marker=marker, alpha=alpha)


def _epoch_axis(axes: Axes, records: Sequence[EpochRecord]) -> None:
    epochs = [record.epoch for record in records] or [1]
    axes.set_xlim(min(epochs) - 0.35, max(epochs) + 0.35)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def _name_at_the_end(axes: Axes, labels: list[tuple[float, str, str, bool]], last_epoch: int) -> None:
    """Each curve's name and last value at its right end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    heights: list[float] = []
    for value, _, _, _ in sorted(labels):
        heights.append(max(value, heights[-1] + gap) if heights else value)
    for height, (value, label, colour, main) in zip(heights, sorted(labels), strict=True):
        axes.annotate(
            f"{label} {value:.1%}",
            (1.0, height),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=10.5 if main else 9,
            fontweight="bold" if main else "normal",
            annotation_clip=False,
        )


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)
