"""From a picture file's bytes to the two views of it that training reads.

A picture is decoded once, as small as both views allow: the header is read first, then the strong view's crop is drawn,
and only then is it known at which of libjpeg's scales (1, 1/2, 1/4, 1/8) decoding may stop. Pictures are turned upright
as their EXIF orientation says, because that is how the people who wrote the texts saw them.
Shapes: pictures and views are RGB uint8 [height, width, 3]; boxes are (left, top, width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, Self

import cv2
import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, model_validator

from datasets_manifest.errors import first_line
from datasets_manifest.manifest import storage
from datasets_manifest.records import packed_pictures as packed
from datasets_manifest.stream.picture_files import BadPicture, Pixels, open_picture

ASPECT = (3 / 4, 4 / 3)  # of the strong view's crop, width by height
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # applied on the device

Range = tuple[float, float]
Adjustment = Callable[[Pixels, float], Pixels]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=8, le=4096)]  # in pixels
Means = tuple[Fraction, Fraction, Fraction]  # of red, green and blue, whose values go from 0 to 1
_Deviation = Annotated[float, Field(gt=0, le=1)]
Deviations = tuple[_Deviation, _Deviation, _Deviation]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]  # as Pillow names them
Channels = Literal["rgb", "bgr"]
Transparency = Literal["white", "dropped"]


class StrongView(BaseModel, extra="forbid", frozen=True):
    """Random resized crop, flip, colour jitter, greyscale; the defaults are the published ones."""

    area: Range = Field((0.08, 1.0), description="Smallest and largest part of the picture that the crop covers.")
    flip: Fraction = Field(0.5, description="Probability of a mirrored picture.")
    jitter: tuple[Fraction, Fraction, Fraction, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.4, 0.4, 0.4, 0.1),
        description="Strengths of brightness, contrast, saturation and hue: factors are uniform in 1 ± strength, the hue "
        "turns by up to ± strength of the colour circle.",
    )
    jitter_p: Fraction = Field(0.8, description="Probability of any colour jitter.")
    greyscale: Fraction = Field(0.2, description="Probability of a picture without colour.")

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise ValueError(f"area: found {(low, high)}; wanted 0 < low <= high <= 1")
        return self


class PictureViews(BaseModel, extra="forbid", frozen=True):
    """Both views of a picture, and how an encoder takes them; the defaults are the published ones.

    resize: the shorter side before the weak view's centre is cut out, or `squash`: both sides become `crop`.
    crop: both sides of a view. mean, std: of the normalisation, which is done on the device.
    transparency: what shows behind transparent pixels; `dropped`: their own colours, without the alpha channel.
    """

    resize: Side | Literal["squash"] = 256
    crop: Side = 224
    interpolation: Interpolation = "bilinear"
    mean: Means = IMAGENET_MEAN
    std: Deviations = IMAGENET_STD
    channels: Channels = "rgb"
    transparency: Transparency = "white"
    strong: StrongView = StrongView()
    max_pictures: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        require_crop_fits(self.crop, self.resize)
        return self

    @property
    def shorter_side(self) -> int:
        """Of the weak view before its centre is cut out."""
        return self.crop if self.resize == "squash" else self.resize


def require_crop_fits(crop: int | None, resize: int | str | None) -> None:
    """Raises ValueError: the crop is larger than the picture that it is cut from."""
    if crop is not None and isinstance(resize, int) and crop > resize:
        raise ValueError(f"crop: found {crop}; wanted at most resize, {resize}")


def read_picture_bytes(path: str) -> bytes:
    """The bytes of a file, a URI or a reference into a shard.

    Raises BadPicture: missing, unreadable (a folder, no permission, no store, a shard that was altered), empty.
    """
    try:
        data = packed.read(path)
        if data is None:
            data = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise BadPicture("missing", path) from error
    except (OSError, ValueError) as error:
        raise BadPicture("unreadable", path, first_line(getattr(error, "strerror", None) or error)) from error
    if not data:
        raise BadPicture("empty", path)
    return data


def decode_views(data: bytes, spec: PictureViews, rng: np.random.Generator | None) -> tuple[Pixels, Pixels | None]:
    """The weak view and, if there is an `rng` to draw it with, the strong view, each [crop, crop, 3].

    Of an animation the first frame is taken; what is transparent shows as `spec.transparency` says. The weak view shows
    the same with every `rng` but not to the last grey level, since the scale of decoding depends on the draw. Raises
    BadPicture: empty, not an image, not read here, too large (by the header, before any pixel is decoded), truncated,
    unreadable.
    """
    file = open_picture(data)
    width, height = file.size
    draw = draw_strong(width, height, spec.strong, rng) if rng is not None else None
    picture = file.decode(_divisor(width, height, spec, draw), on_white=spec.transparency == "white")
    return weak_view(picture, spec), strong_view(picture, width, draw, spec) if draw else None


def inspect_picture(data: bytes) -> tuple[int, int]:
    """Width and height as people see it, after decoding it all, a JPEG at an eighth of its size. Raises BadPicture."""
    file = open_picture(data)
    file.decode(8)
    return file.size


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG whose longer side is at most `side` pixels. Raises BadPicture."""
    file = open_picture(data)
    picture = file.decode(next((d for d in (8, 4, 2) if max(file.size) >= d * side), 1))
    scale = min(1.0, side / max(picture.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    small = cv2.cvtColor(_resize(picture, width, height), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def reduce_picture(data: bytes, shorter_side: int, quality: int) -> bytes:
    """As it is if its shorter side has at most `shorter_side` pixels, else a JPEG of that size, upright.

    Raises BadPicture.
    """
    file = open_picture(data)
    if min(file.size) <= shorter_side:
        file.decode(8)  # a damaged picture is to be found now
        return data
    picture = file.decode(next((d for d in (8, 4, 2) if min(file.size) >= d * shorter_side), 1))
    scale = shorter_side / min(picture.shape[:2])
    height, width = (max(shorter_side, round(length * scale)) for length in picture.shape[:2])
    reduced = cv2.cvtColor(_resize(picture, width, height), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", reduced, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def weak_view(picture: Pixels, spec: PictureViews) -> Pixels:
    """Shorter side to `resize`, then the centre [crop, crop, 3]; sizes are rounded as torchvision rounds them."""
    if spec.resize == "squash":
        return _resize(picture, spec.crop, spec.crop, spec.interpolation)
    height, width = picture.shape[:2]
    # A 1 x 50,000,000 picture is small but not so its enlargement: keep only the middle, all that the crop will see.
    top, left = max(0, height - 4 * width) // 2, max(0, width - 4 * height) // 2
    picture = picture[top : height - top, left : width - left]
    to_height, to_width = (spec.resize * side // min(width, height) for side in picture.shape[:2])
    left, top = round((to_width - spec.crop) / 2), round((to_height - spec.crop) / 2)
    resized = _resize(picture, to_width, to_height, spec.interpolation)
    return resized[top : top + spec.crop, left : left + spec.crop].copy()


class StrongDraw(NamedTuple):
    """Every random choice of one strong view; `jitter` holds adjustments and their amounts in the order of use."""

    box: tuple[int, int, int, int]
    flip: bool
    jitter: tuple[tuple[Adjustment, float], ...]
    grey: bool


def draw_strong(width: int, height: int, spec: StrongView, rng: np.random.Generator) -> StrongDraw:
    """Draw a strong view of a `width` x `height` picture."""
    box = draw_crop(width, height, spec.area, ASPECT, rng)
    flip, jittered, grey = rng.random(3) < (spec.flip, spec.jitter_p, spec.greyscale)
    amounts = [rng.uniform(centre - s, centre + s) for centre, s in zip((1, 1, 1, 0), spec.jitter, strict=True)]
    order = rng.permutation(len(ADJUSTMENTS)) if jittered else ()
    return StrongDraw(box, bool(flip), tuple((ADJUSTMENTS[i], amounts[i]) for i in order), bool(grey))


def draw_crop(
    width: int, height: int, area: Range, aspect: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box: area uniform, aspect ratio log-uniform, place uniform.

    Ten tries, then the largest central box whose aspect ratio is allowed, as torchvision's RandomResizedCrop does it.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


def strong_view(picture: Pixels, full_width: int, draw: StrongDraw, spec: PictureViews) -> Pixels:
    """Carry out a draw, made for `full_width`, on a picture that may have been decoded at a fraction of it."""
    scale = picture.shape[1] / full_width
    left, top, width, height = (side * scale for side in draw.box)
    x, y = min(round(left), picture.shape[1] - 1), min(round(top), picture.shape[0] - 1)
    cut = picture[y : max(y + 1, round(top + height)), x : max(x + 1, round(left + width))]
    view = _resize(cut, spec.crop, spec.crop, spec.interpolation)
    if draw.flip:
        view = cv2.flip(view, 1)
    for adjust, amount in draw.jitter:
        view = adjust(view, amount)
    return adjust_saturation(view, 0.0) if draw.grey else view


def _resize(picture: Pixels, width: int, height: int, interpolation: Interpolation = "bilinear") -> Pixels:
    """Bilinear, after halvings while the picture is twice too large: bilinear sampling alone would skip pixels then.

    Other interpolations are Pillow's, which encoders that name them were trained with.
    """
    if interpolation != "bilinear":
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling[interpolation.upper()]))
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        h, w = picture.shape[0] // 2, picture.shape[1] // 2
        # The mean of 2 x 2 pixels; for other ratios INTER_AREA is five times slower than all the rest.
        picture = cv2.resize(picture[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


_LEVELS, _LUMA = np.arange(256), np.array([0.299, 0.587, 0.114])


def adjust_brightness(picture: Pixels, factor: float) -> Pixels:
    """Mix with black. This and the next three do what torchvision's functions of the same names do."""
    return cv2.LUT(picture, np.clip(_LEVELS * factor, 0, 255).astype(np.uint8))


def adjust_contrast(picture: Pixels, factor: float) -> Pixels:
    """Mix with the mean grey of the picture."""
    grey = round(float(_LUMA @ cv2.mean(picture)[:3]))
    return cv2.LUT(picture, np.clip(_LEVELS * factor + grey * (1 - factor), 0, 255).astype(np.uint8))


def adjust_saturation(picture: Pixels, factor: float) -> Pixels:
    """Mix with the grey picture; the factor 0 gives just that."""
    return cv2.transform(picture, factor * np.eye(3) + (1 - factor) * np.tile(_LUMA, (3, 1)))


def adjust_hue(picture: Pixels, shift: float) -> Pixels:
    """Turn the colour circle by `shift` of a full turn."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # uint8 wraps round, as hues do
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


ADJUSTMENTS: tuple[Adjustment, ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _divisor(width: int, height: int, spec: PictureViews, draw: StrongDraw | None) -> int:
    """The largest of libjpeg's divisors that leaves each view the pixels it needs, so far as the picture has them."""
    spare = [min(width, height) / spec.shorter_side, *(side / spec.crop for side in (draw.box[2:] if draw else ()))]
    return next((divisor for divisor in (8, 4, 2) if divisor <= min(spare)), 1)
