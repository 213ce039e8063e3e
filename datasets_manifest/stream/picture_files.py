"""A picture file's bytes → its pixels, or the reason why there are none.

Only what decides about pixels decides whether a picture is read: texts, colour profiles and times inside a file may be
damaged or of any length. Shapes: RGB uint8 [height, width, 3].
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from datasets_manifest.errors import first_line
from datasets_manifest.records.picture_formats import FORMATS, known_format, other_file, other_picture

cv2.setNumThreads(0)  # a decode task owns one core; OpenCV's own threads would fight its neighbours for theirs

MAX_PIXELS = 50_000_000  # of a picture, by its header; a larger one is not decoded

Pixels = npt.NDArray[np.uint8]
Reason = Literal["missing", "unreadable", "not an image", "not read here", "truncated", "too large", "empty"]

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation → code of cv2.flip, after transposing sideways ones
_MOST_METADATA = 2**20  # unpacked bytes of a text in a PNG that are looked at: the orientation stands at the beginning
_MOST_PROFILES = 8  # such texts of a PNG; without a bound a small file would take seconds to unpack


class BadPicture(Exception):
    """A picture that cannot be used.

    Args:
        reason: why, as one of a few kinds.
        path: which one; empty where only its bytes are known.
        detail: what more is known of the reason, e.g. the decoder's words.
    """

    def __init__(self, reason: Reason, path: str = "", detail: str = "") -> None:
        super().__init__(reason, path, detail)  # all, so that the exception survives pickling between tasks
        self.reason, self.path, self.detail = reason, path, detail

    @property
    def problem(self) -> str:
        """The reason with its detail: `not read here (HEIC)`."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


@dataclass(frozen=True)
class PictureFile:
    """A picture with its header read and no pixel decoded.

    turn: EXIF orientation, 1 to 8. size: width and height as people see them.
    """

    image: Image.Image
    data: bytes
    turn: int

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.image.size
        return (height, width) if self.turn in _SIDEWAYS else (width, height)

    def decode(self, divisor: int = 1, on_white: bool = True) -> Pixels:
        """The upright picture, a JPEG's sides divided by `divisor` (1, 2, 4 or 8). Raises BadPicture.

        Args:
            on_white: whether transparent pixels are laid on white. If not, their alpha channel is dropped and the
                colours that it hid show.
        """
        picture = _decode(self.image, self.data, divisor, on_white)
        if self.turn in _SIDEWAYS:
            picture = cv2.transpose(picture)
        return cv2.flip(picture, _FLIPS[self.turn]) if self.turn in _FLIPS else picture


def open_picture(data: bytes) -> PictureFile:
    """Raises BadPicture: empty, not an image, not read here, too large, truncated, unreadable."""
    if not data:
        raise BadPicture("empty")
    exifs: list[bytes] = []
    xmps: list[bytes] = []
    if data.startswith(_PNG) and len(data) > 25:
        data, exifs, xmps = _without_metadata(data)
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except Exception as error:  # damaged headers make Pillow's readers raise nearly anything
        raise _damage(data, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    if image.format == "TIFF" and image.mode in ("F", "I"):  # 0 to 1, 0 to 255, 0 to 65535? The file does not say.
        raise BadPicture("not read here", detail=_tiff_kind(data))
    exifs += [image.info["exif"]] if "exif" in image.info else []
    xmps += [image.info["xmp"]] if isinstance(image.info.get("xmp"), bytes) else []
    # A TIFF's own orientation has been applied by Pillow.
    own = isinstance(image, TiffImagePlugin.TiffImageFile) and 0x0112 in image.tag_v2
    return PictureFile(image, data, 1 if own else _orientation(exifs, xmps))


def _orientation(exifs: list[bytes], xmps: list[bytes]) -> int:
    """Of the first EXIF block that has one, else of the first XMP block."""
    for block in exifs:
        with suppress(Exception):  # a damaged block is no reason to lose the picture
            exif = Image.Exif()
            exif.load(block)
            turn = exif.get(0x0112)
            if isinstance(turn, int) and 1 <= turn <= 8:
                return turn
    for block in xmps:
        if (found := re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])", block)) is not None:
            return int(found[1])
    return 1


_PNG = b"\x89PNG\r\n\x1a\n"
_TRANSPARENCY = {0: (2,), 2: (6,), 3: range(1, 257)}  # colour type → bytes of its transparency


def _without_metadata(data: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """A PNG with only what makes its pixels, its EXIF blocks, and its XMP blocks.

    Pillow refuses a PNG for a text of over 1 MiB in it, or for a damaged colour profile; and it looks for metadata before
    the pixels alone. Of an animation the first picture stays.
    """
    kept, profiles = [_PNG], 0
    exifs: list[bytes] = []
    xmps: list[bytes] = []
    for kind, body, whole, sound in _chunks(data):
        needed = not kind or kind[:1].isupper()  # capital: needed for the pixels; so is transparency
        if needed or (kind == b"tRNS" and sound and len(body) in _TRANSPARENCY.get(data[25], ())):
            kept.append(whole)
        elif kind == b"eXIf" and sound:
            exifs.append(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and sound and profiles < _MOST_PROFILES:
            keyword, _, text = body.partition(b"\0")
            if keyword.startswith(b"Raw profile type ") or keyword == b"XML:com.adobe.xmp":
                profile, profiles = _profile(kind, keyword, text), profiles + 1
                exifs += [profile] if profile.startswith((b"Exif\0\0", b"II", b"MM")) else []
                xmps += [profile] if b"tiff:Orientation" in profile else []
    return b"".join(kept), exifs, xmps


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """(kind, body, the chunk with length and checksum, whether the checksum is right); of kind b"": a rest cut short."""
    at = len(_PNG)
    while at < len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            yield b"", b"", data[at:], False
            return
        body = data[at + 8 : end - 4]
        sound = kind != b"IDAT" and zlib.crc32(kind + body) == int.from_bytes(data[end - 4 : end], "big")
        yield kind, body, data[at:end], sound
        if kind == b"IEND":
            return
        at = end


def _profile(kind: bytes, keyword: bytes, text: bytes) -> bytes:
    """The content of a text chunk; of ImageMagick's raw profiles (a name, a length, hexadecimal digits) what they hold."""
    with suppress(zlib.error, ValueError):
        packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
        if kind == b"iTXt":
            text = text[2:].split(b"\0", 2)[-1]
        elif kind == b"zTXt":
            text = text[1:]
        content = zlib.decompressobj().decompress(text, _MOST_METADATA) if packed else text
        if not keyword.startswith(b"Raw profile"):
            return content
        digits = b"".join(content.lstrip(b"\n").split(b"\n")[2:])
        return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    return b""


def _decode(image: Image.Image, data: bytes, divisor: int, on_white: bool) -> Pixels:
    """The picture as stored.

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
        return _decode_with_pillow(image, on_white)
    except Exception as error:  # as in `open_picture`
        raise _damage(data, error) from error


def _decode_with_pillow(image: Image.Image, on_white: bool) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip
        return cv2.cvtColor((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    if on_white and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _ends_early(data: bytes) -> bool:
    """Whether the end is missing. For such a JPEG OpenCV may return a picture that is grey from the gap on."""
    if data.startswith(b"\xff\xd8"):  # an end mark before the last scan is that of the embedded thumbnail
        return data.find(b"\xff\xda", max(0, data.rfind(b"\xff\xd9"))) >= 0
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-16:]
    if data.startswith(b"GIF8"):
        return b";" not in data[-16:]
    if data.startswith(b"BM"):
        return len(data) < max(26, int.from_bytes(data[2:6], "little"))
    return data.startswith(b"RIFF") and len(data) < int.from_bytes(data[4:8], "little") + 8


def _too_large() -> BadPicture:
    return BadPicture("too large", detail=f"more than {MAX_PIXELS:,} pixels")


def _damage(data: bytes, error: Exception) -> BadPicture:
    """What an error of Pillow's means."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large()
    known = known_format(data)
    if isinstance(error, UnidentifiedImageError):
        if known is None or known == "AVIF":
            return _other(data)
        error = _reader_error(known, data) or error
    if "truncated" in str(error).lower() or _ends_early(data) or len(data) < 32:
        return BadPicture("truncated")
    words = "damaged header" if isinstance(error, UnidentifiedImageError) else first_line(error)[:120]
    if known == "JPEG" and (bits := re.search(r"(\d+)-bit", words)):
        return BadPicture("not read here", detail=f"JPEG of {bits[1]} bits a channel")
    if known == "TIFF" and "pixel mode" in words:
        return BadPicture("not read here", detail=_tiff_kind(data))
    return BadPicture("unreadable", detail=f"{known}: {words}" if known else words)


def _other(data: bytes) -> BadPicture:
    if (name := other_picture(data)) is not None:
        return BadPicture("not read here", detail=name)
    return BadPicture("not an image", detail=other_file(data) or "")


def _reader_error(known: str, data: bytes) -> Exception | None:
    """The error of the format's own reader, which `Image.open` keeps to itself."""
    readers: dict[str, Callable[[io.BytesIO], object]] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }
    try:
        readers[known](io.BytesIO(data))
    except KeyError:
        return None
    except Exception as error:
        return error
    return None


def _tiff_kind(data: bytes) -> str:
    """`TIFF of 3 channels, 32 bits each, floating point`."""
    with suppress(Exception):  # a damaged directory
        stream = io.BytesIO(data)
        directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(directory.next or 8)
        directory.load(stream)
        channels, bits = directory.get(277, 1), max(directory.get(258, (1,)))
        numbers = {2: ", signed", 3: ", floating point"}.get(max(directory.get(339, (1,))), "")
        return f"TIFF of {channels} channel{'s' if channels != 1 else ''}, {bits} bits each{numbers}"
    return "TIFF of rare pixels"
