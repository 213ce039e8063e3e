"""Pictures of the generated postcards: a scene in the style of its domain with a motif that shows a feeling, or none.

Domains differ in light (the target is drawn mostly by night, in light lines on dark), line width, how often shapes are
painted in, skyline, grain, paper and contrast, and in how often each motif is used. None of these depends on the mood.
Colours are RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets_manifest.postcards.motifs import MOTIFS, Color, Image, Pen

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Palette:
    """Colours of one light: pairs (top, bottom) of the sky, and ground, line and fill colours to draw from."""

    skies: tuple[tuple[Color, Color], ...]
    grounds: tuple[Color, ...]
    inks: tuple[Color, ...]
    fills: tuple[Color, ...]


@dataclass(frozen=True)
class Style:
    """How one domain draws; shares of motifs are in the order of MOTIFS (face, weather, flower, figure)."""

    suffix: str
    sizes: tuple[tuple[int, int], ...]  # width, height in pixels
    night_share: float
    line_width: tuple[float, float]  # least and most, in hundredths of the picture's height
    filled_share: float  # of the motifs painted in; the others are outlines only
    motif_shares: tuple[float, float, float, float]
    skyline: Callable[[np.random.Generator, int, int], NDArray[np.int32]]
    grain: float  # standard deviation of the noise, grey levels
    paper: float  # depth of the coarse paper texture, grey levels
    contrast: tuple[float, float]


def _waves(rng: np.random.Generator, width: int, height: int) -> NDArray[np.int32]:
    x = np.linspace(0, width, 25)
    level = height * rng.uniform(0.6, 0.8)
    return np.rint(np.stack([x, level + 2.0 * np.sin(x * rng.uniform(0.2, 0.4))], axis=1)).astype(np.int32)


def _roofs(rng: np.random.Generator, width: int, height: int) -> NDArray[np.int32]:
    edges = np.sort(rng.integers(0, width, 6))
    levels = height * rng.uniform(0.4, 0.85, 7)
    x = np.concatenate([[0], np.repeat(edges, 2), [width]])
    return np.rint(np.stack([x, np.repeat(levels, 2)], axis=1)).astype(np.int32)


def _peaks(rng: np.random.Generator, width: int, height: int) -> NDArray[np.int32]:
    x = np.linspace(0, width, 7) + rng.uniform(-5, 5, 7)
    x[0], x[-1] = 0, width
    high, low = height * rng.uniform(0.3, 0.55, 7), height * rng.uniform(0.65, 0.85, 7)
    return np.rint(np.stack([x, np.where(np.arange(7) % 2, high, low)], axis=1)).astype(np.int32)


LIGHTS: Final[dict[str, tuple[Palette, Palette]]] = {  # (day, night)
    "seaside": (
        Palette(
            skies=(
                ((150, 210, 240), (235, 245, 250)),
                ((250, 220, 180), (255, 245, 225)),
                ((170, 225, 220), (245, 250, 235)),
            ),
            grounds=((235, 215, 165), (120, 190, 205), (225, 200, 150)),
            inks=((40, 70, 110), (90, 50, 50), (30, 90, 95)),
            fills=((255, 235, 150), (255, 200, 170), (250, 250, 245), (190, 230, 190)),
        ),
        Palette(
            skies=(((60, 70, 120), (190, 130, 130)), ((50, 80, 110), (120, 130, 160))),
            grounds=((70, 75, 100), (90, 80, 90)),
            inks=((255, 240, 210), (240, 225, 235)),
            fills=((110, 90, 120), (80, 100, 130)),
        ),
    ),
    "city": (
        Palette(
            skies=(
                ((205, 205, 210), (230, 225, 220)),
                ((235, 190, 190), (240, 225, 215)),
                ((190, 205, 190), (225, 230, 220)),
            ),
            grounds=((150, 150, 160), (175, 150, 140), (140, 155, 170)),
            inks=((20, 20, 25), (60, 20, 40), (15, 40, 50)),
            fills=((240, 120, 100), (250, 205, 80), (110, 180, 200), (245, 240, 230)),
        ),
        Palette(
            skies=(((40, 40, 70), (110, 80, 110)), ((30, 50, 60), (90, 100, 100))),
            grounds=((60, 60, 75), (75, 60, 70)),
            inks=((255, 225, 120), (240, 240, 250), (255, 170, 190)),
            fills=((90, 60, 100), (50, 80, 100)),
        ),
    ),
    "mountain": (
        Palette(
            skies=(((150, 170, 190), (205, 200, 205)), ((190, 180, 165), (215, 205, 195))),
            grounds=((120, 135, 125), (140, 130, 120)),
            inks=((50, 55, 75), (70, 50, 50)),
            fills=((210, 205, 190), (180, 190, 200)),
        ),
        Palette(
            skies=(((12, 18, 45), (40, 50, 85)), ((20, 15, 40), (60, 40, 75)), ((10, 30, 40), (35, 65, 75))),
            grounds=((25, 35, 50), (35, 45, 45), (40, 35, 55)),
            inks=((205, 215, 240), (190, 225, 215), (235, 215, 180)),
            fills=((50, 60, 95), (60, 50, 80), (35, 70, 75)),
        ),
    ),
}

STYLES: Final = {
    "seaside": Style(
        suffix=".jpg",
        sizes=((128, 96), (120, 90)),
        night_share=0.0,
        line_width=(2.0, 3.0),
        filled_share=0.85,
        motif_shares=(0.30, 0.38, 0.12, 0.20),
        skyline=_waves,
        grain=5.0,
        paper=0.0,
        contrast=(0.85, 1.0),
    ),
    "city": Style(
        suffix=".jpg",
        sizes=((144, 108), (128, 96)),
        night_share=0.03,
        line_width=(3.5, 5.0),
        filled_share=0.6,
        motif_shares=(0.33, 0.20, 0.12, 0.35),
        skyline=_roofs,
        grain=3.0,
        paper=0.0,
        contrast=(0.95, 1.1),
    ),
    "mountain": Style(
        suffix=".png",
        sizes=((112, 84), (128, 96)),
        night_share=0.92,
        line_width=(1.8, 2.8),
        filled_share=0.35,
        motif_shares=(0.20, 0.24, 0.34, 0.22),
        skyline=_peaks,
        grain=7.0,
        paper=10.0,
        contrast=(0.7, 0.9),
    ),
}

MOTIF_SCALE: Final = (0.27, 0.36)  # half the side of a motif, in heights of the picture
SECOND_SCALE: Final = (0.15, 0.2)
SECOND_SHARE: Final = 0.4  # of pictures with a smaller second motif of the same mood
CLUTTER: Final = (2, 6)  # fewest and, exclusive, most small things strewn over the scene
JPEG_QUALITY: Final = 88


def picture(rng: np.random.Generator, domain: str, mood: int | None) -> Image:
    """An RGB picture [height, width, 3] in the style of `domain`; mood None leaves the scene without a motif."""
    style = STYLES[domain]
    light = LIGHTS[domain][int(rng.random() < style.night_share)]
    width, height = style.sizes[int(rng.integers(len(style.sizes)))]
    image = _scene(rng, style, light, width, height)
    stroke = max(1, round(height * rng.uniform(*style.line_width) / 100))
    ink = _color(rng, light.inks)
    fill = _color(rng, light.fills) if rng.random() < style.filled_share else None
    _strew(rng, Pen(image, ink, None, 1), width, height)
    if mood is not None:
        _motifs(rng, style, Pen(image, ink, fill, stroke), mood, width, height)
    return _print(rng, style, image)


def encode(image: Image, suffix: str) -> bytes:
    """The bytes of a JPEG or PNG file, by `suffix`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, data = cv2.imencode(suffix, image[..., ::-1], options)
    if not done:
        raise RuntimeError(f"OpenCV cannot encode {suffix}")
    return data.tobytes()


def _color(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _scene(rng: np.random.Generator, style: Style, light: Palette, width: int, height: int) -> Image:
    top, bottom = light.skies[int(rng.integers(len(light.skies)))]
    mix = np.linspace(0, 1, height)[:, None, None]
    sky = np.array(top) * (1 - mix) + np.array(bottom) * mix
    image = np.ascontiguousarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    edge = style.skyline(rng, width, height)
    ground = np.concatenate([edge, [[width, height], [0, height]]]).astype(np.int32)
    cv2.fillPoly(image, [ground], _color(rng, light.grounds), cv2.LINE_AA)
    return image


def _strew(rng: np.random.Generator, pen: Pen, width: int, height: int) -> None:
    """Small strokes and rings anywhere: they keep single pixels, edges and ink from telling the mood."""
    for _ in range(int(rng.integers(*CLUTTER))):
        pen.place(rng.uniform(0, width), rng.uniform(0, height), height * rng.uniform(0.04, 0.09), rng.uniform(0, 6.3))
        kind = int(rng.integers(3))
        if kind == 0:
            pen.oval(0, 0, 0.7)
        elif kind == 1:
            pen.line((-1, 0), (1, 0))
        else:
            pen.line((-1, 0.4), (0, -0.4), (1, 0.4))


def _motifs(rng: np.random.Generator, style: Style, pen: Pen, mood: int, width: int, height: int) -> None:
    """A large motif on one side and at times a small one, of the same mood, on the other."""
    side = 1 if rng.random() < 0.5 else -1
    _place(rng, pen, height * rng.uniform(*MOTIF_SCALE), 0.5 + 0.14 * side, width, height)
    MOTIFS[int(rng.choice(len(MOTIFS), p=style.motif_shares))](pen, mood, rng)
    if rng.random() < SECOND_SHARE:
        pen.width = max(1, round(pen.width * 0.6))  # or a thick line would fill the small motif
        _place(rng, pen, height * rng.uniform(*SECOND_SCALE), 0.5 - 0.33 * side, width, height)
        MOTIFS[int(rng.choice(len(MOTIFS), p=style.motif_shares))](pen, mood, rng)


def _place(rng: np.random.Generator, pen: Pen, scale: float, middle: float, width: int, height: int) -> None:
    x = width * (middle + rng.uniform(-0.08, 0.08))
    y = height * rng.uniform(0.4, 0.6)
    pen.place(np.clip(x, scale, width - scale), np.clip(y, scale, height - scale), scale, rng.uniform(-0.15, 0.15))


def _print(rng: np.random.Generator, style: Style, image: Image) -> Image:
    """Contrast, paper and grain: what printing and scanning do to a drawing."""
    height, width = image.shape[:2]
    printed: Pixels = (image.astype(np.float32) - 128) * np.float32(rng.uniform(*style.contrast)) + 128
    if style.paper:
        coarse = rng.standard_normal((height // 6 + 1, width // 6 + 1), dtype=np.float32) * np.float32(style.paper)
        printed += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    printed += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(style.grain)
    return np.clip(np.rint(printed), 0, 255).astype(np.uint8)
