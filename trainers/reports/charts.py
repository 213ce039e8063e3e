"""Charts by matplotlib: PNG files, and SVG within a page.

Curves and points differ by colour (Okabe and Ito's palette, for the colour-blind, too) and by dashes or marker. In a page a
chart takes the page's colours and fonts, scales with it, has a label for those who cannot see it, a title for every point,
and the numbers in a table that opens.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import Affine2D

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, GREY, YELLOW = "#e69f00", "#56b4e9", "#8a8f98", "#b5a500"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY, YELLOW)
_STYLE: Any = matplotlib.rc_params_from_file(Path(__file__).with_name("charts.mplstyle"), use_default_template=False)
INK, SOFT, GRID = (_STYLE[name] for name in ("text.color", "axes.labelcolor", "grid.color"))
PAPER = "#ffffff"
RULE: dict[str, Any] = {"color": SOFT, "linestyle": (0, (4, 3)), "linewidth": 1.2, "zorder": 1}
_CSS_COLOURS = {INK: "var(--text)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--page)"}
_DASHES = ((), (7, 4), (2, 3), (9, 3, 2, 3), (12, 4), (5, 2), (1, 2), (4, 6))
_MARKERS = "os^DPvXp"
_MOST_MARKERS = 60  # points of a curve; beyond, markers hide the curve
_WIDTH, _HEIGHT = 4.4, 2.6  # inches of a page's chart; the text is 11/72 inch
_DPI = 150  # of PNG files
_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Series:
    """A curve: its points (x, y) in order, and the number of its colour, dashes and marker; -1 is the text's colour."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: int


@dataclass(frozen=True)
class Chart:
    """A chart of a page. svg: None where nothing was recorded. keys: its legend, (name, kind). rows: its numbers."""

    title: str
    svg: Markup | None = None
    keys: Sequence[tuple[str, int]] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """Scale of the y axis. ends: its range, None to fit the values."""

    percent: bool = False
    ends: tuple[float, float] | None = None

    def format(self, value: float | None) -> str:
        return percent(value) if self.percent else plain(value)


SHARES = Scale(percent=True, ends=(0, 1))
FITTED = Scale()


@dataclass(frozen=True)
class Epochs:
    """The x axis of curves: first and last epoch, None to fit; and the epochs that are marked, {epoch: name}."""

    ends: tuple[float, float] | None = None
    marks: Mapping[float, str] = field(default_factory=dict)


def plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def look(kind: int) -> dict[str, str]:
    """A kind's colour, dashes and marker for SVG. Beyond the number of colours, the same colour gets another marker."""
    marker = MarkerStyle(_marker(kind))
    outline = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(7, -7)).to_polygons()
    shape = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in np.asarray(part)) + "z" for part in outline)
    return {"colour": _colour(kind), "dash": " ".join(map(str, _DASHES[kind % len(_DASHES)])), "shape": shape}


@contextmanager
def new_figure(width: float = _WIDTH, height: float = _HEIGHT) -> Iterator[Figure]:
    """A figure in our style, sizes in inches, free of pyplot's process-wide state. Save it before the block ends."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Figure, file: Path) -> None:
    """Without date and version: the same numbers give the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=_DPI, facecolor="white", metadata={"Software": None})


def svg(figure: Figure, label: str) -> Markup:
    """The figure as a part of a page. The same figure gives the same text.

    Args:
        label: what the chart shows, in words.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(file, format="svg", metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for group in root.iter(f"{_SVG}g"):
        identity = group.attrib.pop("id", "")
        titles = json.loads(identity) if identity.startswith("[") else []
        points = list(group.iter(f"{_SVG}use")) or [group]
        for element, words in zip(points if titles else [], titles, strict=True):
            title = ElementTree.Element(f"{_SVG}title")
            title.text = words
            element.insert(0, title)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, css in _CSS_COLOURS.items():
        text = text.replace(colour, css)
    return Markup(re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2))  # HTML knows both


def with_symbols(picture: Markup, kinds: Sequence[int]) -> Markup:
    """An `svg` of points alone, drawn with the page's symbols, which a script can exchange.

    Args:
        kinds: of the points, in the order in which they were drawn.
    """
    left = iter(kinds)
    return Markup(
        re.sub(r'<use [^>]*?( x="[^"]*" y="[^"]*")[^>]*>', lambda use: f'<use href="#m{next(left)}"{use[1]}/>', picture)
    )


def titled(artist: Artist, *titles: str) -> None:
    """Titles that a page shows at a bar, or at each point of a line, in order."""
    artist.set_gid(json.dumps(titles))


def draw_curves(axes: Axes, series: Sequence[Series], scale: Scale = FITTED, epochs: Epochs | None = None) -> None:
    """Curves over epochs; few points have markers, so that a single epoch is seen."""
    epochs = epochs or Epochs()
    for one in series:
        if not one.points:
            continue
        x, y = zip(*one.points, strict=True)
        dashes = _DASHES[one.kind % len(_DASHES)] if one.kind >= 0 else ()
        (line,) = axes.plot(x, y, color=_colour(one.kind), linestyle=(0, dashes) if dashes else "-", label=one.name)
        if len(x) <= _MOST_MARKERS:
            line.set_marker(_marker(one.kind))
            titled(line, *(f"{one.name}, epoch {at:g}: {scale.format(value)}" for at, value in one.points))
    found = [x for one in series for x, _ in one.points] or [1]
    first, last = epochs.ends or (min(found), max(found))
    axes.set_xlim(first - 0.3, last + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if scale.ends:
        axes.set_ylim(scale.ends[0] - 0.02, scale.ends[1] + 0.02)
    format_y_axis(axes, scale)
    for level, (epoch, name) in enumerate(sorted(epochs.marks.items())):
        axes.axvline(epoch, **RULE)
        left = epoch > (first + last) / 2
        axes.annotate(
            name,
            (epoch, 1.0),
            (-3 if left else 3, 1 + 13 * level),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=SOFT,
            ha="right" if left else "left",
            annotation_clip=False,
        )


def format_y_axis(axes: Axes, scale: Scale) -> None:
    """Ticks of the y axis at round numbers, with all their digits, so that neighbouring labels differ."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(
        PercentFormatter(1.0, symbol=" %") if scale.percent else FuncFormatter(lambda value, _: f"{value:.10g}")
    )


def curves(title: str, series: Sequence[Series], scale: Scale = FITTED, epochs: Epochs | None = None) -> Chart:
    """A page's chart of curves over epochs with its legend and its numbers."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Chart(title)
    with new_figure() as figure:
        axes = figure.subplots()
        draw_curves(axes, drawn, scale, epochs)
        axes.set_xlabel("epoch")
        last = "; ".join(f"{one.name}: last {scale.format(one.points[-1][1])}" for one in drawn)
        picture = svg(figure, f"{title} by epoch. {last}")
    values = [dict(one.points) for one in drawn]
    rows = [(f"{x:g}", *(scale.format(of.get(x)) for of in values)) for x in sorted({x for of in values for x in of})]
    keys = [(one.name, one.kind) for one in drawn]
    return Chart(title, picture, keys, ("epoch", *(one.name for one in drawn)), rows)


def _colour(kind: int) -> str:
    return INK if kind < 0 else COLOURS[kind % len(COLOURS)]


def _marker(kind: int) -> str:
    return "o" if kind < 0 else _MARKERS[(kind + kind // len(COLOURS)) % len(_MARKERS)]
