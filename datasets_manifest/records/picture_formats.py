"""The picture formats that are read, for everything that reads pictures or looks for them; and what other files are.

Pillow is told this list, so that it hands no file to an outside program (EPS) or to a rare, old reader.
"""

from __future__ import annotations

import re

FORMATS = {  # Pillow's name → endings of file names
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
PICTURES = tuple(ending for endings in FORMATS.values() for ending in endings)
UNREAD_PICTURES = (
    ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".svgz", ".ico", ".cur", ".icns", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tga", ".dds", ".pcx", ".psd", ".exr", ".hdr", ".eps", ".ai", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".orf", ".raf", ".rw2", ".jxr", ".qoi",
)  # fmt: skip

_SIGNATURES = {  # first bytes of what Pillow's readers are tried on
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG(?:\r\n\x1a\n|.{0,3}\Z)",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "AVIF": rb"....ftypavi[fs]",
}
_OTHER_PICTURES = {
    "HEIC": rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG XR": rb"II\xbc",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{0,500}?\?>\s*)?(?:<!--.{0,500}?-->\s*)?(?:<!DOCTYPE svg.{0,500}?>\s*)?<svg\b",
    "ICO": rb"\0\0[\x01\x02]\0[^\0]\0",
    "PPM": rb"P[1-7][\s#]",
    "Photoshop": rb"8BPS",
    "DDS": rb"DDS ",
    "OpenEXR": rb"v/1\x01",
    "Radiance HDR": rb"#\?(?:RADIANCE|RGBE)",
    "ICNS": rb"icns",
    "QOI": rb"qoif",
    "CR3": rb"....ftypcrx ",
}
_OTHER_FILES = {
    "an HTML page": rb"(?:\xef\xbb\xbf)?\s*<(?:!DOCTYPE html|html|head|body)\b",
    "an XML file": rb"(?:\xef\xbb\xbf)?\s*<\?xml",
    "JSON": rb'\s*[{\[]\s*["{\[]',
    "a PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "a zip file": rb"PK\x03\x04",
    "a gzip file": rb"\x1f\x8b",
    "a video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "a sound": rb"RIFF....WAVE|ID3|OggS|fLaC",
    "a Git LFS pointer: fetch the file with `git lfs pull`": rb"version https://git-lfs",
    "a PNG copied as text, which changed its line ends": rb"\x89PNG",
    "nothing but zero bytes": rb"\0{32}",
    "base64: decode it first": rb"(?:data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD)",
    "a picture behind other bytes": rb".{1,64}?(?:\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n)",
}


def known_format(data: bytes) -> str | None:
    """Which of FORMATS the first bytes announce."""
    return _named(data, _SIGNATURES)


def other_picture(data: bytes) -> str | None:
    """Which picture format that is not read here the first bytes announce."""
    return _named(data, _OTHER_PICTURES)


def other_file(data: bytes) -> str | None:
    """What a file that is no picture seems to be."""
    return _named(data, _OTHER_FILES)


def _named(data: bytes, signatures: dict[str, bytes]) -> str | None:
    start = data[:4096]
    return next((name for name, form in signatures.items() if re.match(form, start, re.DOTALL | re.IGNORECASE)), None)
