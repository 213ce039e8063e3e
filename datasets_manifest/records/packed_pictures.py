"""References to pictures inside shards, used in place of paths: `<shard>#<offset>+<length>+<crc32>`."""

from __future__ import annotations

import re
import zlib

from datasets_manifest.manifest import storage

# A folder's name may have a line's end in it.
_REFERENCE = re.compile(r"(?P<shard>.+\.shard)#(?P<offset>\d+)\+(?P<length>\d+)\+(?P<crc>[0-9a-f]{8})", re.DOTALL)


def reference(shard: str, offset: int, data: bytes) -> str:
    """Names `data`, which lies at `offset` of `shard`."""
    return f"{shard}#{offset}+{len(data)}+{zlib.crc32(data):08x}"


def file_of(path: str) -> str:
    """The file that is read for `path`: its shard, or `path` itself."""
    match = _REFERENCE.fullmatch(path)
    return match["shard"] if match else path


def read(path: str) -> bytes | None:
    """The bytes of a reference; None if `path` is not a reference.

    Raises:
        OSError: no such shard, or it ends too early, or the bytes are not those that were packed.
    """
    match = _REFERENCE.fullmatch(path)
    if match is None:
        return None
    length = int(match["length"])
    data = storage.read_range(match["shard"], int(match["offset"]), length)
    if len(data) != length or zlib.crc32(data) != int(match["crc"], 16):
        raise OSError(f"{path}: the shard is truncated or altered")
    return data
