"""Text files of any encoding, packed with gzip or not → text.

The encoding is stated, or tested for in this order: byte order mark, UTF-8, and for tables (CSV, TSV) cp1252, which Excel
writes on Windows. A file that unpacks to far more than such files do is refused.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.storage import Location

GZIP = ".gz"
_LEAST_LIMIT = 64 * 2**20  # bytes a packed file may always unpack to, and
_MOST_RATIO = 100  # how many times its own size a larger one may: texts pack to a third or a tenth

_BYTE_ORDER_MARKS = {  # UTF-32's little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WINDOWS = "cp1252"


def read_text(file: Location, encoding: str | None, *, guess: bool) -> tuple[str, str | None]:
    """The file as text without a byte order mark, and a note where the encoding was guessed.

    Args:
        encoding: None: UTF-8, and with `guess` what the file's bytes say.

    Raises:
        InputError: the file cannot be read or unpacked, or is not of the encoding (naming the line).
    """
    try:
        content = storage.read_bytes(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    if storage.suffix(file) == GZIP:
        content = _unpack(file, content)
    if guess and content.startswith(b"PK\x03\x04"):
        raise InputError("a zip file, as Excel writes them", file=file, wanted="a table saved as CSV in UTF-8")
    note = None
    if encoding is None and guess:
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
        if encoding is None and _is_windows(content):
            encoding = _WINDOWS
            note = f"{file} is not UTF-8 and was read as {_WINDOWS}; `encoding` in the manifest says what it is"
    text = _decode(file, content, encoding)
    if "\0" in text:
        # Most often UTF-16; otherwise a damaged or binary file. Either way the values around it are not to be trusted.
        line = f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}"
        wanted = "a text file saved as UTF-8, or its `encoding` in the manifest (utf-16-le?)"
        raise InputError("holds a NUL byte", file=file, field=line, wanted=wanted)
    return text, note


def _is_windows(content: bytes) -> bool:
    """Whether the bytes are no UTF-8 but can be cp1252.

    Where some signs are UTF-8 and others are not, the file is damaged or joined of two: it is not guessed at.
    """
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        try:
            content.decode(_WINDOWS)
        except UnicodeDecodeError:
            return False
        return content.decode("utf-8", "ignore").isascii()
    return False


def _decode(file: Location, content: bytes, encoding: str | None) -> str:
    try:
        return content.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding or "utf-8", "ignore")
        line = f"line {before.count(chr(10)) + 1}"
        problem = f"not {encoding or 'UTF-8'}: byte 0x{content[error.start]:02x}"
        wanted = "a file saved as UTF-8, or its `encoding` in the manifest"
        raise InputError(problem, file=file, field=line, wanted=wanted) from None
    except UnicodeError as error:  # utf-16 without a byte order mark
        raise InputError(f"not {encoding}: {error}", file=file, wanted="another `encoding`") from None


def _unpack(file: Location, packed: bytes) -> bytes:
    limit = most_unpacked(len(packed))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            content = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be unpacked ({error})", file=file, wanted="a complete gzip file") from None
    if len(content) > limit:
        wanted = f"at most {limit:,} bytes when unpacked; unpack it yourself if it is meant so"
        raise InputError("unpacks to far more than its size", file=file, value=len(packed), wanted=wanted)
    return content


def most_unpacked(packed_bytes: int) -> int:
    """Bytes that a packed file of this size may unpack to."""
    return max(_LEAST_LIMIT, _MOST_RATIO * packed_bytes)
