"""From a picture file's bytes to the two views of it that training reads.

A picture is decoded once, as small as both views allow: the header is read first, then the strong view's crop is drawn,
and only then is it known at which of libjpeg's scales (1, 1/2, 1/4, 1/8) decoding may stop. Pictures are turned upright
as their EXIF orientation says, because that is how the people who wrote the texts saw them.
Shapes: pictures and views are RGB uint8 [height, width, 3]; boxes are (left, top, width, height) in pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal, NamedTuple, Self

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field, model_validator

from datasets_manifest.manifest import storage
from datasets_manifest.records import packed_pictures as packed

cv2.setNumThreads(0)  # a decode task owns one core; OpenCV's own threads would fight its neighbours for theirs

MAX_PIXELS = 50_000_000  # of a picture, by its header; a larger one is not decoded
ASPECT = (3 / 4, 4 / 3)  # of the strong view's crop, width by height
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # applied on the device

Pixels = npt.NDArray[np.uint8]
Range = tuple[float, float]
Adjustment = Callable[[Pixels, float], Pixels]
Fraction = Annotated[float, Field(ge=0, le=1)]
Reason = Literal["missing", "unreadable", "not an image", "truncated", "too large", "empty"]


class BadPicture(Exception):
    """A picture that cannot be used: `reason` says why, `path` which one (empty where only its bytes are known)."""

    def __init__(self, reason: Reason, path: str = "") -> None:
        super().__init__(reason, path)  # both, so that the exception survives pickling between tasks
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


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
    """Both views of a picture; the defaults are the published ones."""

    resize: int = Field(
        256, ge=8, le=4096, description="Pixels of the shorter side before the weak view's centre is cut out."
    )
    crop: int = Field(224, ge=8, le=4096, description="Pixels of both sides of what the encoder sees.")
    strong: StrongView = StrongView()
    max_pictures: int = Field(10, ge=1, description="Most pictures of a record. The others are left out.")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop: found {self.crop}; wanted at most resize, {self.resize}")
        return self


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
        raise BadPicture("unreadable", path) from error
    if not data:
        raise BadPicture("empty", path)
    return data


def decode_views(data: bytes, spec: PictureViews, rng: np.random.Generator | None) -> tuple[Pixels, Pixels | None]:
    """The weak view and, if there is an `rng` to draw it with, the strong view, each [crop, crop, 3].

    Of an animation the first frame is taken; what is transparent shows white. The weak view shows the same with every
    `rng` but not to the last grey level, since the scale of decoding depends on the draw. Raises BadPicture: empty, not
    an image, too large (by the header, before any pixel is decoded), truncated, unreadable.
    """
    image = _open(data)
    turn = _orientation(image)
    width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
    draw = draw_strong(width, height, spec.strong, rng) if rng is not None else None
    picture = _upright(_decode(image, data, _divisor(width, height, spec, draw)), turn)
    return weak_view(picture, spec), strong_view(picture, width, draw, spec.crop) if draw else None


def inspect_picture(data: bytes) -> tuple[int, int]:
    """Width and height as people see it, after decoding it all, a JPEG at an eighth of its size. Raises BadPicture."""
    image = _open(data)
    width, height = image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size
    _decode(image, data, 8)
    return width, height


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG whose longer side is at most `side` pixels. Raises BadPicture."""
    image = _open(data)
    divisor = next((d for d in (8, 4, 2) if max(image.size) >= d * side), 1)
    picture = _upright(_decode(image, data, divisor), _orientation(image))
    scale = min(1.0, side / max(picture.shape[:2]))
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    small = cv2.cvtColor(_resize(picture, width, height), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def reduce_picture(data: bytes, shorter_side: int, quality: int) -> bytes:
    """As it is if its shorter side has at most `shorter_side` pixels, else a JPEG of that size, upright.

    Raises BadPicture.
    """
    image = _open(data)
    if min(image.size) <= shorter_side:
        _decode(image, data, 8)  # a damaged picture is to be found now
        return data
    divisor = next((d for d in (8, 4, 2) if min(image.size) >= d * shorter_side), 1)
    picture = _upright(_decode(image, data, divisor), _orientation(image))
    scale = shorter_side / min(picture.shape[:2])
    height, width = (max(shorter_side, round(length * scale)) for length in picture.shape[:2])
    reduced = cv2.cvtColor(_resize(picture, width, height), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", reduced, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def weak_view(picture: Pixels, spec: PictureViews) -> Pixels:
    """Shorter side to `resize`, then the centre [crop, crop, 3]; sizes are rounded as torchvision rounds them."""
    height, width = picture.shape[:2]
    # A 1 x 50,000,000 picture is small but not so its enlargement: keep only the middle, all that the crop will see.
    top, left = max(0, height - 4 * width) // 2, max(0, width - 4 * height) // 2
    picture = picture[top : height - top, left : width - left]
    to_height, to_width = (spec.resize * side // min(width, height) for side in picture.shape[:2])
    left, top = round((to_width - spec.crop) / 2), round((to_height - spec.crop) / 2)
    return _resize(picture, to_width, to_height)[top : top + spec.crop, left : left + spec.crop].copy()


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


def strong_view(picture: Pixels, full_width: int, draw: StrongDraw, crop: int) -> Pixels:
    """Carry out a draw, made for `full_width`, on a picture that may have been decoded at a fraction of it."""
    scale = picture.shape[1] / full_width
    left, top, width, height = (side * scale for side in draw.box)
    x, y = min(round(left), picture.shape[1] - 1), min(round(top), picture.shape[0] - 1)
    view = _resize(picture[y : max(y + 1, round(top + height)), x : max(x + 1, round(left + width))], crop, crop)
    if draw.flip:
        view = cv2.flip(view, 1)
    for adjust, amount in draw.jitter:
        view = adjust(view, amount)
    return adjust_saturation(view, 0.0) if draw.grey else view


def _resize(picture: Pixels, width: int, height: int) -> Pixels:
    """Bilinear, after halvings while the picture is twice too large: bilinear sampling alone would skip pixels then."""
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

# What people send. The list also keeps Pillow from handing a file to an outside program (EPS) or to a rare, old reader.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation → code of cv2.flip, after transposing sideways ones


def _open(data: bytes) -> Image.Image:
    """The picture with its header read and no pixel decoded."""
    if not data:
        raise BadPicture("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # damaged headers make Pillow's readers raise nearly anything
        raise BadPicture(_damage(data, error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture("too large")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. TIFF keeps its own outside `info`, and Pillow has applied that one already."""
    with suppress(Exception):  # a damaged EXIF block is no reason to lose the picture
        if "exif" in image.info and (turn := image.getexif().get(0x0112)) in (*_FLIPS, *_SIDEWAYS):
            return int(turn)
    return 1


def _divisor(width: int, height: int, spec: PictureViews, draw: StrongDraw | None) -> int:
    """The largest of libjpeg's divisors that leaves each view the pixels it needs, so far as the picture has them."""
    spare = [min(width, height) / spec.resize, *(side / spec.crop for side in (draw.box[2:] if draw else ()))]
    return next((divisor for divisor in (8, 4, 2) if divisor <= min(spare)), 1)


def _upright(picture: Pixels, turn: int) -> Pixels:
    if turn in _SIDEWAYS:
        picture = cv2.transpose(picture)
    return cv2.flip(picture, _FLIPS[turn]) if turn in _FLIPS else picture


def _decode(image: Image.Image, data: bytes, divisor: int) -> Pixels:
    """The picture as stored, a JPEG's sides divided by `divisor`.

    OpenCV reads the usual JPEGs, Pillow all the rest: OpenCV mistakes CMYK for RGB, drops transparency, and allocates
    what a damaged PNG's chunk claims to hold, up to 4 GB; its lead on PNGs is small.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and not _ends_early(data):  # MPO: several JPEGs
        flags = _REDUCED.get(divisor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
        # libjpeg rounds sides up; a last row or column that is less than half picture would shift the rest
        width, height = ((side + divisor // 2) // divisor for side in image.size)
        with suppress(cv2.error):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if picture is not None:
                return cv2.cvtColor(picture[:height, :width], cv2.COLOR_BGR2RGB)
    try:
        return _decode_with_pillow(image)
    except Exception as error:  # as in `_open`
        raise BadPicture(_damage(data, error)) from error


def _decode_with_pillow(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip
        return cv2.cvtColor((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _ends_early(data: bytes) -> bool:
    """Whether the end mark is missing. For such a file OpenCV may return a picture that is grey from the gap on."""
    if data.startswith(b"\xff\xd8"):  # an end mark before the last scan is that of the embedded thumbnail
        return data.find(b"\xff\xda", max(0, data.rfind(b"\xff\xd9"))) >= 0
    return data.startswith(b"RIFF") and len(data) < int.from_bytes(data[4:8], "little") + 8


def _damage(data: bytes, error: Exception) -> Reason:
    """The reason for an error of Pillow's; a known first word before an unreadable header means a file cut short."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too large"
    if isinstance(error, UnidentifiedImageError):
        return "truncated" if data.startswith(_MAGIC) else "not an image"
    return "truncated" if "truncated" in str(error).lower() or _ends_early(data) else "unreadable"
