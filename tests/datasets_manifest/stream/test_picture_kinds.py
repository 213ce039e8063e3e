"""Pictures as people send them: every common format and mode, damaged ones, bombs. Decoded sensibly or called bad."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_manifest.stream.images import PictureViews, decode_views, inspect_picture, thumbnail
from datasets_manifest.stream.picture_files import BadPicture

SPEC = PictureViews(resize=40, crop=32)
RED = (200, 30, 40)


def encoded(mode: str, kind: str, size: tuple[int, int] = (64, 48), **how: Any) -> bytes:
    image = Image.new("RGB", size, RED).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "PNG"),
        ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"), ("RGB", "BMP"),
        ("RGB", "TIFF"), ("CMYK", "TIFF"), ("L", "TIFF"), ("RGB", "AVIF"),
    ],
)  # fmt: skip
def test_formats_and_modes_keep_their_colour(mode: str, kind: str) -> None:
    source = mode if mode != "I;16" else "I"
    data = encoded(source, kind) if mode != "I;16" else _sixteen_bit()
    weak, strong = decode_views(data, SPEC, np.random.default_rng(0))
    assert weak.shape == (32, 32, 3)
    assert strong is not None
    assert strong.shape == (32, 32, 3)
    middle = weak[16, 16].astype(int)
    grey = mode in ("L", "LA", "1", "I;16")
    assert (abs(middle - middle[0]) < 4).all() if grey else (abs(middle - RED) < 25).all(), middle
    assert inspect_picture(data) == (64, 48)


def _sixteen_bit() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((48, 64), 40_000, np.uint16)).save(out, "PNG")
    return out.getvalue()


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=50)
        weak, _ = decode_views(out.getvalue(), SPEC, None)
        assert weak[16, 16, 0] > 200 > 60 > weak[16, 16, 2]


def test_exif_orientation_turns_the_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("RGB", "JPEG", exif=exif)
    assert inspect_picture(data) == (48, 64)
    small = Image.open(io.BytesIO(thumbnail(data, 32)))
    assert small.size == (24, 32)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.9])
def test_cut_files_are_bad_and_never_crash(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind)
    data = out.getvalue()
    with pytest.raises(BadPicture) as caught:
        decode_views(data[: max(1, int(len(data) * share))], SPEC, None)
    assert caught.value.reason in ("truncated", "not an image", "unreadable")


def test_bombs_are_refused_by_their_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body = b"IDAT" + zlib.compress(bytes(1000))
    data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    for use in (lambda: decode_views(data, SPEC, None), lambda: inspect_picture(data)):
        with pytest.raises(BadPicture, match="too large"):
            use()


SEEDS = [encoded("RGB", kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")]


@settings(max_examples=150, derandomize=True)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_give_a_picture_or_a_reason(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        weak, strong = decode_views(bytes(damaged), SPEC, np.random.default_rng(1))
    except BadPicture as bad:
        assert bad.reason
    else:
        assert strong is not None
        assert weak.shape == strong.shape == (32, 32, 3)


@settings(max_examples=80, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(BadPicture):
        decode_views(data, SPEC, None)
