"""Pictures of the generated postcards: a scene in the style of its domain with a motif that shows a feeling, or none.

Domains differ in light (the target is drawn mostly by night, in light lines on dark), line width, how often shapes are
painted in, skyline, grain, paper and contrast, and in how often each motif is used. None of these depends on the mood.
Colours are RGB.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter

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
    """How one domain draws (styles.yaml); shares of motifs are in the order of MOTIFS (face, weather, flower, figure)."""

    suffix: str
    sizes: tuple[tuple[int, int], ...]  # width, height in pixels
    night_share: float
    line_width: tuple[float, float]  # least and most, in hundredths of the picture's height
    filled_share: float  # of the motifs painted in; the others are outlines only
    motif_shares: tuple[float, float, float, float]
    skyline: Literal["waves", "roofs", "peaks"]
    grain: float  # standard deviation of the noise, grey levels
    paper: float  # depth of the coarse paper texture, grey levels
    contrast: tuple[float, float]
    day: Palette
    night: Palette


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


SKYLINES: Final = {"waves": _waves, "roofs": _roofs, "peaks": _peaks}
STYLES: Final = TypeAdapter(dict[str, Style]).validate_python(
    yaml.safe_load(files(__package__).joinpath("styles.yaml").read_text(encoding="utf-8"))
)

MOTIF_SCALE: Final = (0.27, 0.36)  # half the side of a motif, in heights of the picture
SECOND_SCALE: Final = (0.15, 0.2)
SECOND_SHARE: Final = 0.4  # of pictures with a smaller second motif of the same mood
CLUTTER: Final = (2, 6)  # fewest and, exclusive, most small things strewn over the scene
JPEG_QUALITY: Final = 88


def picture(rng: np.random.Generator, domain: str, mood: int | None) -> Image:
    """An RGB picture [height, width, 3] in the style of `domain`; mood None leaves the scene without a motif."""
    style = STYLES[domain]
    light = style.night if rng.random() < style.night_share else style.day
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
    edge = SKYLINES[style.skyline](rng, width, height)
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
