"""References to pictures inside shards: `<shard>#<offset>+<length>+<crc32>`, which stand where a picture's path stands."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from datasets_manifest.manifest import storage

_REFERENCE = re.compile(r"(?P<shard>.+\.shard)#(?P<offset>\d+)\+(?P<length>\d+)\+(?P<crc>[0-9a-f]{8})")


def reference(shard: str, offset: int, data: bytes) -> str:
    """Names `data`, which lies at `offset` of `shard`."""
    return f"{shard}#{offset}+{len(data)}+{zlib.crc32(data):08x}"


def file_of(path: str) -> str:
    """The file that must be there for `path` to be read: its shard, or itself."""
    match = _REFERENCE.fullmatch(path)
    return match["shard"] if match else path


def read(path: str) -> bytes | None:
    """The bytes of a reference, None if `path` is none.

    Raises:
        OSError: no such shard, or it ends too early, or the bytes are not those that were packed.
    """
    match = _REFERENCE.fullmatch(path)
    if match is None:
        return None
    shard, length = match["shard"], int(match["length"])
    data = storage.read_range(shard if storage.is_uri(shard) else Path(shard), int(match["offset"]), length)
    if len(data) != length or zlib.crc32(data) != int(match["crc"], 16):
        raise OSError(f"{path}: the shard is truncated or altered")
    return data
