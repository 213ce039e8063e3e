"""The page of a comparison with training: what moved, the distributions, every test."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from services.drift.check import Checked
from services.drift.comparison import COMPONENTS, EFFECT_FROM, P_BELOW, Comparison, components, in_words
from trainers.model.reference import FACTS
from trainers.reports import charts
from trainers.reports.page import render

_BEFORE, _NOW = 0, 1  # kinds: colour and marker
_KEYS = (("training", _BEFORE), ("now", _NOW))
_BINS = 24
_MOST_CLASSES = 12  # that a chart shows, those that changed most


def drift_page(model: str, checked: Checked) -> str:
    """The page as HTML; it needs nothing else."""
    drift = checked.drift
    verdict, *moved = in_words(drift)
    confidence = checked.before.probs_NC.max(1), checked.now.probs_NC.max(1)
    shown = [_classes(checked), _distribution("Confidence", *confidence, inside=(0.0, 1.0))]
    of_features = components(checked.before.features_NK, checked.now.features_NK)
    return render(
        "drift.html",
        f"Drift of {model}",
        package="services.drift",
        verdict=verdict,
        contents={
            "moved": "What moved",
            "predictions": "Predictions",
            "inputs": "Inputs",
            "features": "Features",
            "tests": "Tests",
        },
        moved=moved,
        on=checked.on,
        notes=checked.notes,
        expected=None if checked.expected is None else str(checked.expected),
        drift=drift,
        predictions=shown,
        inputs=[
            _distribution(FACTS[name].capitalize(), checked.before.fact(name), checked.now.fact(name))
            for name in FACTS
            if len(checked.before.fact(name)) and len(checked.now.fact(name))
        ],
        features=[
            _distribution(f"Component {number}", before_N, now_N)
            for number, (before_N, now_N) in enumerate(zip(*of_features, strict=True), start=1)
        ],
        most_components=COMPONENTS,
        tests=[_row(one) for one in sorted(drift.comparisons, key=lambda one: (not one.moved, -one.effect))],
        p_below=P_BELOW,
        effect_from=EFFECT_FROM,
    )


def _row(one: Comparison) -> tuple[str, ...]:
    p = f"{one.p:.2g}" if one.p >= 1e-4 else "< 0.0001"
    return (
        one.what,
        "moved" if one.moved else "",
        f"{one.effect:.2f}",
        p,
        charts.plain(one.before),
        charts.plain(one.now),
        one.test,
    )


def _classes(checked: Checked) -> charts.Chart:
    drift = checked.drift
    shares = list(zip(drift.classes, drift.shares_before, drift.shares_now, strict=True))
    if len(shares) > _MOST_CLASSES:
        shares = sorted(shares, key=lambda share: -abs(share[2] - share[1]))[:_MOST_CLASSES]
    title = "Predicted classes"
    with charts.new_figure() as figure:
        axes = figure.subplots()
        for kind, side in ((_BEFORE, -0.2), (_NOW, 0.2)):
            for place, (name, *of_class) in enumerate(shares):
                share = float(of_class[kind])
                (bar,) = axes.bar(place + side, share, 0.38, color=charts.COLOURS[kind], hatch=_hatch(kind))
                charts.titled(bar, f"{name}, {_KEYS[kind][0]}: {charts.percent(share)}")
        names = [name if len(name) <= 14 else f"{name[:13]}…" for name, *_ in shares]
        many = len(shares) > 4
        axes.set_xticks(range(len(shares)), names, rotation=35 if many else 0, ha="right" if many else "center")
        charts.format_y_axis(axes, charts.Scale(percent=True))
        words = "; ".join(f"{name}: {charts.percent(b)}, now {charts.percent(n)}" for name, b, n in shares)
        picture = charts.svg(figure, f"{title} in training and now. {words}")
    rows = [(name, charts.percent(before), charts.percent(now)) for name, before, now in shares]
    return charts.Chart(title, picture, _KEYS, ("class", "training", "now"), rows)


def _distribution(
    title: str, before_N: np.ndarray, now_N: np.ndarray, inside: tuple[float, float] | None = None
) -> charts.Chart:
    """Both sides as outlines of histograms over the same bins, shares of their records."""
    low, high = inside or (min(before_N.min(), now_N.min()), max(before_N.max(), now_N.max()))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = [np.histogram(x, edges)[0] / len(x) for x in (before_N, now_N)]
    with charts.new_figure() as figure:
        axes = figure.subplots()
        for kind, shares in enumerate(counts):
            axes.stairs(
                shares, edges, color=charts.COLOURS[kind], fill=kind == _BEFORE, alpha=0.45 if kind == _BEFORE else 1
            )
            axes.stairs(shares, edges, color=charts.COLOURS[kind], linewidth=2, linestyle=_line(kind))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
        axes.set_ylabel("records")
        medians = [charts.plain(float(np.median(x))) for x in (before_N, now_N)]
        picture = charts.svg(figure, f"{title} in training and now. Median {medians[0]}, now {medians[1]}")
    rows = [
        (f"{share:.0%}", *(charts.plain(float(np.quantile(x, share))) for x in (before_N, now_N)))
        for share in (0.05, 0.25, 0.5, 0.75, 0.95)
    ]
    return charts.Chart(title, picture, _KEYS, ("quantile", "training", "now"), rows)


def _line(kind: int) -> Any:
    return "-" if kind == _BEFORE else (0, (7, 4))


def _hatch(kind: int) -> str:
    return "" if kind == _BEFORE else "//"
