"""What else is in a picture's file decides nothing about its pixels, but how it is turned; and why a picture is not read."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from datasets_manifest.records.picture_formats import FORMATS, PICTURES, known_format
from datasets_manifest.stream.images import inspect_picture
from datasets_manifest.stream.picture_files import BadPicture, open_picture

PICTURE = np.zeros((60, 80, 3), np.uint8)
PICTURE[:20, :30], PICTURE[40:, 50:] = (220, 30, 20), (20, 40, 220)
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def written(form: str = "PNG", picture: np.ndarray = PICTURE, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **how)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(kind: bytes, body: bytes, *, sound: bool = True, behind: bool = False) -> bytes:
    """A PNG with one chunk more, before its pixels or behind them."""
    data, more = written(), chunk(kind, body)
    at = len(data) - 12 if behind else 33
    return data[:at] + (more if sound else more[:-4] + b"\0\0\0\1") + data[at:]


def exif(turn: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = turn
    return block.tobytes()


def raw_profile(name: bytes, content: bytes) -> bytes:
    """As ImageMagick writes it, without the chunk around it."""
    digits = content.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return b"\n" + name + b"\n%8d\n" % len(content) + "\n".join(lines).encode() + b"\n"


def text_png(**how: Any) -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(how.pop("times", 1)):
        info.add_itxt(f"parameters{number}", "x" * (2**20 + how.get("more", 100)), zip=True)
    return written(pnginfo=info)


ODD_METADATA = {
    "a text of more than 1 MiB": text_png(),
    "many long texts": text_png(times=70, more=-10),
    "a text with a wrong checksum": with_chunk(b"tEXt", b"a\0b", sound=False),
    "a private chunk with a wrong checksum": with_chunk(b"prVt", b"a", sound=False),
    "EXIF with a wrong checksum": with_chunk(b"eXIf", exif(6), sound=False),
    "a packed text that is none": with_chunk(b"zTXt", b"Raw profile type exif\0\0garbage"),
    "a colour profile of 2 MiB": written(icc_profile=bytes(2**21)),
    "a colour profile that is none": with_chunk(b"iCCP", b"icc\0\0garbage"),
    "sizes cut short": with_chunk(b"pHYs", b"\0"),
    "no gamma": with_chunk(b"gAMA", b""),
    "an animation of no frames": with_chunk(b"acTL", bytes(3)),
    "transparency of a wrong size": with_chunk(b"tRNS", b"\0"),
    "a raw profile that is no hexadecimal": with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz\n"),
}


@pytest.mark.parametrize("kind", ODD_METADATA)
def test_odd_metadata_do_not_lose_the_picture(kind: str) -> None:
    np.testing.assert_array_equal(open_picture(ODD_METADATA[kind]).decode(), PICTURE)


def tiff(turn: int) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = turn
    return written("TIFF", tiffinfo=tags)


PROFILE = raw_profile(b"exif", b"Exif\0\0" + exif(6).removeprefix(b"Exif\0\0"))
PLACES = {
    "JPEG": written("JPEG", exif=exif(6), quality=95),
    "PNG": written(exif=exif(6)),
    "WebP": written("WEBP", exif=exif(6), lossless=True),
    "TIFF": tiff(6),
    "AVIF": written("AVIF", exif=exif(6), quality=95),
    "JPEG's XMP": written("JPEG", xmp=PACKET, quality=95),
    "WebP's XMP": written("WEBP", xmp=PACKET, lossless=True),
    "TIFF's own before XMP": tiff(6),
    "PNG's XMP": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PACKET),
    "PNG's packed XMP": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(PACKET)),
    "PNG behind the pixels": with_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"), behind=True),
    "ImageMagick's packed profile": with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "ImageMagick's plain profile": with_chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE),
    "ImageMagick's APP1 profile": with_chunk(b"tEXt", b"Raw profile type APP1\0" + PROFILE),
    "a profile behind the pixels": with_chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE, behind=True),
    "XMP where EXIF is damaged": written("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", xmp=PACKET, quality=95),
    "XMP where EXIF says nothing": written("JPEG", exif=Image.Exif().tobytes(), xmp=PACKET, quality=95),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_orientation_is_found_wherever_it_stands(place: str) -> None:
    found = open_picture(PLACES[place])
    assert found.size == (60, 80)
    assert abs(found.decode().astype(int) - np.rot90(PICTURE, -1)).mean() < 3


def test_exif_goes_before_xmp() -> None:
    assert open_picture(written("JPEG", exif=exif(1), xmp=PACKET)).size == (80, 60)


def jpeg_of(bits: int) -> bytes:
    data = bytearray(written("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = 0xC1, bits
    return bytes(data)


def tiff_of(kind: Any, channels: int) -> bytes:
    return cv2.imencode(".tiff", PICTURE[..., :channels].astype(kind))[1].tobytes()


NOT_READ = {
    "JPEG of 12 bits a channel": jpeg_of(12),
    "TIFF of 3 channels, 32 bits each, floating point": tiff_of(np.float32, 3),
    "TIFF of 1 channel, 32 bits each, floating point": tiff_of(np.float32, 1),
    "TIFF of 1 channel, 32 bits each, signed": tiff_of(np.int32, 1),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
    "JPEG 2000": written("JPEG2000"),
    "JPEG XL": b"\xff\x0a" + bytes(99),
    "ICO": written("ICO"),
    "PPM": written("PPM"),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "Photoshop": b"8BPS\0\1" + bytes(99),
    "DDS": written("DDS"),
}
NO_PICTURE = {
    "an HTML page": b"<!doctype html><html>404</html>",
    "a PDF": b"%PDF-1.7\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0",
    "a gzip file": gzip.compress(written()),
    "a video": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99),
    "a Git LFS pointer: fetch the file with `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\n",
    "base64: decode it first": base64.b64encode(written("JPEG")),
    "a PNG copied as text, which changed its line ends": written().replace(b"\r\n", b"\n"),
    "nothing but zero bytes": bytes(500),
    "a picture behind other bytes": b"\xef\xbb\xbf" + written("JPEG"),
}


@pytest.mark.parametrize("detail", [*NOT_READ, *NO_PICTURE])
def test_the_reason_is_the_true_one(detail: str) -> None:
    data = NOT_READ.get(detail) or NO_PICTURE[detail]
    with pytest.raises(BadPicture) as caught:
        inspect_picture(data)
    assert caught.value.problem == f"{'not read here' if detail in NOT_READ else 'not an image'} ({detail})"


def test_what_is_unreadable_has_the_words_of_its_reader() -> None:
    data = bytearray(written(picture=np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)))
    data[len(data) // 2] ^= 255
    with pytest.raises(BadPicture, match=r"unreadable \(PNG: .+\)"):
        inspect_picture(bytes(data))
    header = bytearray(written())
    header[16:24] = bytes(8)
    with pytest.raises(BadPicture, match=r"unreadable \(PNG: .*checksum.*IHDR"):
        inspect_picture(bytes(header))


def test_every_format_is_known_by_its_bytes_and_endings() -> None:
    for form in FORMATS:
        data = written(form)
        assert known_format(data) == form
        assert open_picture(data).size == (80, 60)
    assert len(set(PICTURES)) == len(PICTURES)
