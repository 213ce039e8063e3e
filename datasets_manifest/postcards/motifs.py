"""Motifs of the generated postcards: small drawings that each show one of three feelings.

A mood is 0, 1 or 2 for negative, neutral and positive. Coordinates of a motif are in its own unit square, x to the
right and y down, both about -1..1; `Pen` places them in the picture. Colours are RGB and never depend on the mood.
"""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
Image = NDArray[np.uint8]

SUBPIXEL_BITS: Final = 4


class Pen:
    """Draws shapes of a motif's unit square into a picture at one place, size, angle and colour."""

    def __init__(self, image: Image, ink: Color, fill: Color | None, width: int) -> None:
        self.image, self.ink, self.fill, self.width = image, ink, fill, width
        self.place(0.0, 0.0, 1.0, 0.0)

    def place(self, x: float, y: float, scale: float, angle: float) -> None:
        """Puts the middle of the unit square at pixel (x, y), `scale` pixels a unit, turned by `angle` radians."""
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        self.matrix = np.array([[cos, -sin], [sin, cos]])
        self.offset = np.array([x, y])

    def _pixels(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        placed = points @ self.matrix.T + self.offset
        return np.rint(placed * (1 << SUBPIXEL_BITS)).astype(np.int32)

    def line(self, *points: tuple[float, float]) -> None:
        self._stroke(np.array(points, dtype=np.float64), closed=False)

    def curve(self, points: NDArray[np.float64]) -> None:
        self._stroke(points, closed=False)

    def shape(self, points: NDArray[np.float64]) -> None:
        """A closed outline, painted in when the pen has a fill colour."""
        if self.fill is not None:
            cv2.fillPoly(self.image, [self._pixels(points)], self.fill, cv2.LINE_AA, SUBPIXEL_BITS)
        self._stroke(points, closed=True)

    def oval(self, x: float, y: float, rx: float, ry: float | None = None) -> None:
        self.shape(arc(x, y, rx, rx if ry is None else ry, 0, 2 * np.pi))

    def dot(self, x: float, y: float, radius: float) -> None:
        cv2.fillPoly(
            self.image, [self._pixels(arc(x, y, radius, radius, 0, 2 * np.pi))], self.ink, cv2.LINE_AA, SUBPIXEL_BITS
        )

    def _stroke(self, points: NDArray[np.float64], *, closed: bool) -> None:
        cv2.polylines(self.image, [self._pixels(points)], closed, self.ink, self.width, cv2.LINE_AA, SUBPIXEL_BITS)


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 20) -> NDArray[np.float64]:
    """Points of an arc about (x, y) from angle `start` to `stop`, clockwise on the screen from the right."""
    angles = np.linspace(start, stop, points)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def draw_face(pen: Pen, mood: int, rng: np.random.Generator) -> None:
    """A round head: the corners of the mouth go down, stay level or go up."""
    pen.oval(0, 0, 0.95)
    look = rng.uniform(-0.08, 0.08)
    for side in (-1, 1):
        pen.dot(0.36 * side + look, -0.28, 0.12)
    bend = (mood - 1) * rng.uniform(0.3, 0.45)
    x = np.linspace(-0.52, 0.52, 13)
    pen.curve(np.stack([x + look, 0.36 + bend * (0.5 - (x / 0.52) ** 2)], axis=1))


def draw_weather(pen: Pen, mood: int, rng: np.random.Generator) -> None:
    """Sun with rays, a cloud over level mist, or a cloud with rain."""
    if mood == 2:
        turn = rng.uniform(0, 1)
        for angle in np.arange(8) * np.pi / 4 + turn:
            cos, sin = np.cos(angle), np.sin(angle)
            pen.line((0.68 * cos, 0.68 * sin), (0.98 * cos, 0.98 * sin))
        pen.oval(0, 0, 0.5)
        return
    pen.shape(_cloud())
    if mood == 1:
        for y in (0.38, 0.62, 0.86):
            shift = rng.uniform(-0.15, 0.15)
            pen.line((-0.6 + shift, y), (0.6 + shift, y))
        return
    slant = rng.uniform(0.1, 0.3)
    for x in (-0.6, -0.2, 0.2, 0.6):
        pen.line((x, 0.35), (x - slant, 0.92))


def _cloud() -> NDArray[np.float64]:
    left = arc(-0.55, -0.15, 0.4, 0.32, np.pi / 2, 1.4 * np.pi, 9)
    top = arc(0.0, -0.4, 0.48, 0.42, 1.1 * np.pi, 1.9 * np.pi, 12)
    right = arc(0.55, -0.15, 0.4, 0.32, -0.4 * np.pi, np.pi / 2, 9)
    return np.concatenate([left, top, right])


def draw_flower(pen: Pen, mood: int, rng: np.random.Generator) -> None:
    """A flower in bloom, a closed bud, or a bent stem with its head down."""
    lean = rng.uniform(-0.1, 0.1)
    side = 1 if rng.random() < 0.5 else -1
    if mood == 0:
        bow = arc(0.34 * side, -0.1, 0.34, 0.6, np.pi if side > 0 else 2 * np.pi, 1.5 * np.pi, 10)
        pen.curve(np.concatenate([[[lean, 0.98]], bow, [[0.62 * side, -0.25]]]))
        for angle in (0.2, 0.5, 0.8):
            dx, dy = np.cos(angle * np.pi), np.sin(angle * np.pi)
            pen.oval(0.64 * side + 0.24 * dx, 0.02 + 0.26 * dy, 0.17, 0.2)
        pen.line((lean, 0.55), (-0.4 * side, 0.85))
        return
    pen.line((lean, 0.98), (0, -0.1))
    pen.line((lean, 0.7), (0.42 * side, 0.4))
    if mood == 1:
        pen.oval(0, -0.45, 0.27, 0.45)
        pen.line((0, -0.9), (0, -0.3))
        return
    for angle in np.arange(5) * 0.4 * np.pi + rng.uniform(0, 1):
        pen.oval(0.42 * np.cos(angle), -0.42 + 0.42 * np.sin(angle), 0.25)
    pen.oval(0, -0.42, 0.22)


def draw_figure(pen: Pen, mood: int, rng: np.random.Generator) -> None:
    """A person with arms thrown up, held out level, or hanging under a bowed head."""
    bow = 0.22 * (1 if rng.random() < 0.5 else -1) if mood == 0 else 0.0
    neck, hip = -0.35 + (0.1 if mood == 0 else 0.0), 0.3
    reach = rng.uniform(0.6, 0.75)
    hand_y = {0: neck + 0.85, 1: neck + 0.12, 2: neck - 0.6}[mood]
    hand_x = {0: 0.35, 1: reach + 0.1, 2: reach}[mood]
    stride = rng.uniform(0.25, 0.45)
    pen.line((0, neck), (0, hip))
    for side in (-1, 1):
        pen.line((0, neck + 0.12), (hand_x * side, hand_y))
        pen.line((0, hip), (stride * side, 0.98))
    pen.oval(bow, neck - 0.28 + abs(bow) * 0.6, 0.27)


MOTIFS: Final[tuple[Callable[[Pen, int, np.random.Generator], None], ...]] = (
    draw_face,
    draw_weather,
    draw_flower,
    draw_figure,
)
