"""What a caller may ask for, and how long a request may take."""

from __future__ import annotations

from dataclasses import dataclass

from datasets_manifest.stream.picture_files import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """Of one request. body_bytes: as received. pictures, texts, text_chars: of one sample.

    pixels: of one picture, by its header. request_pixels: of all of a request's pictures. in_flight: requests of one
    caller at a time. in_flight_of_all: of all callers. requests_per_s: of one caller, on average; ten seconds' worth may come
    at once. timeout_s: for the whole request. body_s, body_bytes_per_s: a body may take so many seconds, and one more for so
    many bytes that have come.
    """

    body_bytes: int = 16 * 2**20
    samples: int = 32
    pictures: int = 16
    texts: int = 200
    pixels: int = MAX_PIXELS
    request_pixels: int = 400_000_000
    text_chars: int = 20_000
    in_flight: int = 64
    in_flight_of_all: int = 256
    requests_per_s: float = 200.0
    timeout_s: float = 30.0
    body_s: float = 5.0
    body_bytes_per_s: float = 50_000.0
