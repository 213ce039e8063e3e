"""Charts of a report as SVG within the page: they take the page's colours, scale with it and are read without sight.

What is told apart by colour (Okabe and Ito) is also told apart by dashes or by the marker's shape. Every chart has a
label, its points have titles, and the numbers stand below it in a table that opens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

from trainers.reports.page import Html, details, table

Format = Callable[[float], str]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98", "#b5a500")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "5 2", "1 2", "4 6")
# Around the origin, of about the same area.
SHAPES = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "M-3.1-3.1h6.2v6.2h-6.2z",
    "M0-4.2L4 3H-4z",
    "M0-4.6L4.2 0 0 4.6-4.2 0z",
    "M-1.3-4h2.6v2.7H4v2.6H1.3V4h-2.6V1.3H-4v-2.6h2.7z",
    "M0 4.2L4-3H-4z",
    "M-3.9-2l2-2L0-1.9 1.9-4l2 2L1.9 0l2 2-2 2L0 1.9-1.9 4l-2-2L-1.9 0z",
    "M0-4.4L4.2-1.3 2.6 3.6h-5.2L-4.2-1.3z",
)
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 52, 12, 14, 42  # the left margin grows with the labels
_GLYPH = 8.0  # widest of a label's characters

STYLE = (
    """
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; overflow: visible }
@media (max-width: 30rem) { svg { font-size: 15px } }
svg text { fill: var(--text) } svg .axis text { fill: var(--soft); stroke: var(--page);
stroke-width: 4px; paint-order: stroke } svg .grid { stroke: var(--line); stroke-width: .6 }
svg .line { fill: none; stroke-width: 2 } svg .rule { stroke: var(--soft); stroke-dasharray: 4 3; stroke-width: 1.3 }
svg .mark { stroke: var(--page); stroke-width: .7 } svg .frame { fill: none; stroke: var(--line) }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .2rem 0; padding: 0; font-size: .85rem }
.legend svg { display: inline-block; width: 2.2em; height: 1em; vertical-align: -.1em; margin-right: .3em }
"""
    + "".join(f".k{i} {{ --ink: {colour} }} " for i, colour in enumerate(COLOURS))
    + """
.k0, .k1, .k2, .k3, .k4, .k5, .k6, .k7 { fill: var(--ink); stroke: var(--ink) }
svg .k0 text, svg .k1 text { stroke: none }
"""
)


@dataclass(frozen=True)
class Series:
    """A curve: its points (x, y) in order, and the place of its colour, dash and shape."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: int


def plain(value: float) -> str:
    return f"{value:.3g}"


def tick_label(value: float) -> str:
    """All digits of a round number: neighbouring ticks differ."""
    return f"{value:.6g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def round_percent(value: float) -> str:
    return f"{100 * value:.4g} %"


class Plot:
    """A frame with two axes; what is added is clipped by nobody, so ranges must hold it.

    Args:
        x, y: ranges of the axes.
        label: what the chart shows, in words.
        marks: vertical lines with names above the frame, {x: name}.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        label: str,
        x_title: str,
        x_format: Format = tick_label,
        y_format: Format = tick_label,
        whole_x: bool = False,
        height: int = 250,
        marks: Mapping[float, str] | None = None,
    ) -> None:
        self._top = _TOP + 14 * len(marks or {})
        self._x, self._y, self._height, self._label = _wide(x), _wide(y), height, label
        self._parts: list[str] = []
        labels = {tick: y_format(tick) for tick in _ticks(self._y, 5, whole=False)}
        self._left = max(_LEFT, round(6 + _GLYPH * max(map(len, labels.values()), default=0)))
        for tick, words in labels.items():
            place = f"{self.y(tick):.1f}"
            self._parts.append(f'<path class="grid" d="M{self._left} {place}H{_WIDTH - _RIGHT}"/>')
            self._text(self._left - 6, self.y(tick) + 4, words, "end")
        for tick in _ticks(self._x, 6, whole=whole_x):
            self._text(self.x(tick), height - _BOTTOM + 17, x_format(tick), "middle")
        self._text((self._left + _WIDTH - _RIGHT) / 2, height - 6, x_title, "middle")
        named = sorted((marks or {}).items())
        for level, (at, _) in enumerate(named):
            top = 12 + 14 * level
            self._parts.append(f'<path class="rule" d="M{self.x(at):.1f} {top}V{height - _BOTTOM}"/>')
        for level, (at, name) in enumerate(named):
            left = self.x(at) > _WIDTH / 2
            self._text(self.x(at) + (-5 if left else 5), 12 + 14 * level, name, "end" if left else "start")

    def x(self, value: float) -> float:
        low, high = self._x
        return self._left + (value - low) / (high - low) * (_WIDTH - self._left - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return self._height - _BOTTOM - (value - low) / (high - low) * (self._height - _BOTTOM - self._top)

    def _text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(
            f'<g class="axis"><text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text></g>'
        )

    def curve(self, series: Series, title: Callable[[float, float], str]) -> None:
        """Line and markers; many points have no markers."""
        kind = series.kind % len(COLOURS)
        path = "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in series.points)
        dash = f' stroke-dasharray="{_DASHES[kind]}"' if _DASHES[kind] else ""
        self._parts.append(f'<g class="k{kind}"><path class="line" d="{path}"{dash}/></g>')
        for x, y in series.points if len(series.points) <= 60 else ():
            self.marker(x, y, kind, kind, f"{series.name}, {title(x, y)}")

    def marker(self, x: float, y: float, colour: int, shape: int, title: str) -> None:
        at = f'transform="translate({self.x(x):.1f} {self.y(y):.1f})"'
        self._parts.append(
            f'<g class="k{colour % len(COLOURS)}"><path class="mark" {at} d="{SHAPES[shape % len(SHAPES)]}">'
            f"<title>{escape(title)}</title></path></g>"
        )

    def box(self, x: tuple[float, float], y: tuple[float, float], kind: int, title: str, opacity: float = 1.0) -> None:
        """A bar."""
        left, right, top, bottom = self.x(x[0]), self.x(x[1]), self.y(max(y)), self.y(min(y))
        self._parts.append(
            f'<g class="k{kind}"><rect class="mark" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" opacity="{opacity:g}"><title>{escape(title)}</title></rect></g>'
        )

    def segment(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A dashed line for comparison."""
        (x0, y0), (x1, y1) = start, end
        path = f"M{self.x(x0):.1f} {self.y(y0):.1f}L{self.x(x1):.1f} {self.y(y1):.1f}"
        self._parts.append(f'<path class="rule" d="{path}"/>')

    def svg(self) -> Html:
        return Html(
            f'<svg viewBox="0 0 {_WIDTH} {self._height}" role="img" aria-label="{escape(self._label)}">'
            + "".join(self._parts)
            + "</svg>"
        )


def curves(
    title: str,
    series: Sequence[Series],
    *,
    x_title: str = "epoch",
    format: Format = plain,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    marks: Mapping[float, str] | None = None,
    height: int = 250,
) -> Html:
    """A figure of curves over whole numbers: chart, legend, and the numbers in a table that opens."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Html(f"<figure><figcaption>{escape(title)}</figcaption><p>Nothing of this was recorded.</p></figure>")
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points]
    last = "; ".join(f"{one.name}: last {format(one.points[-1][1])}" for one in drawn)
    left, right = x or (min(xs), max(xs))
    low, high = y or (min(ys), max(ys))
    axis = round_percent if format is percent else tick_label
    plot = Plot(
        (left - 0.3, right + 0.3),
        (low, high) if y else (low - 0.06 * (high - low), high + 0.06 * (high - low)),
        label=f"{title} by {x_title}. {last}",
        x_title=x_title,
        y_format=axis,
        whole_x=True,
        height=height,
        marks=marks,
    )
    for one in drawn:
        plot.curve(one, lambda x, y: f"{x_title} {x:g}: {format(y)}")
    keys = legend({one.name: (one.kind, one.kind) for one in drawn}, lines=True) if len(drawn) > 1 else ""
    return figure(title, plot.svg() + keys + _numbers(title, drawn, x_title, format))


def figure(title: str, inner: str) -> Html:
    return Html(f"<figure><figcaption>{escape(title)}</figcaption>{inner}</figure>")


def charts(inner: Sequence[str]) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="charts">{"".join(inner)}</div>')


def legend(names: Mapping[str, tuple[int, int]], *, lines: bool = False, of: str = "") -> Html:
    """Names with their colour and shape, {name: (colour, shape)}; `of`: what a script knows the list by."""
    items = []
    for name, (colour, shape) in names.items():
        kind = colour % len(COLOURS)
        dash = f' stroke-dasharray="{_DASHES[kind]}"' if _DASHES[kind] else ""
        line = f'<path class="line" d="M0 8H36"{dash}/>' if lines else ""
        mark = f'<path class="mark" transform="translate(18 8) scale(1.2)" d="{SHAPES[shape % len(SHAPES)]}"/>'
        picture = f'<svg viewBox="0 0 36 16" aria-hidden="true"><g class="k{kind}">{line}{mark}</g></svg>'
        items.append(f"<li>{picture}{escape(name)}</li>")
    known = f' data-legend="{escape(of)}"' if of else ""
    return Html(f'<ul class="legend"{known}>{"".join(items)}</ul>')


def _numbers(title: str, series: Sequence[Series], x_title: str, format: Format) -> Html:
    values = [dict(one.points) for one in series]
    rows = [
        (f"{x:g}", *(format(of[x]) if x in of else "–" for of in values))
        for x in sorted({x for of in values for x in of})
    ]
    return details("Numbers", table((x_title, *(one.name for one in series)), rows, f"{title}: numbers"))


def _wide(ends: tuple[float, float]) -> tuple[float, float]:
    """A range that has a length."""
    low, high = ends
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def _ticks(ends: tuple[float, float], most: int, *, whole: bool) -> list[float]:
    low, high = ends
    places = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(place) for place in places if low - slack <= place <= high + slack]
