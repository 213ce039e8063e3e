"""Facts of picture files: sizes, a digest of the content, why a picture cannot be used. In process or on a Ray cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from datasets_manifest.stream.images import inspect_picture, read_picture_bytes
from datasets_manifest.stream.picture_files import BadPicture

FACTS_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("problem", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size", pa.int64()),
        ("digest", pa.binary(16)),
    ]
)
IN_PROCESS = 3_000  # pictures; for fewer, starting a cluster costs more than it saves
_BLOCK = 500


@dataclass(frozen=True)
class PictureFacts:
    """Facts of one file. problem: why it cannot be used, or None. digest: of its content; None if it cannot be read."""

    problem: str | None
    width: int
    height: int
    size: int  # bytes
    digest: bytes | None


def read_facts(path: str) -> PictureFacts:
    """Read and decode one picture, a JPEG at an eighth of its size."""
    try:
        data = read_picture_bytes(path)
    except BadPicture as bad:
        return PictureFacts(bad.problem, 0, 0, 0, None)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        width, height = inspect_picture(data)
    except BadPicture as bad:
        return PictureFacts(bad.problem, 0, 0, len(data), digest)
    return PictureFacts(None, width, height, len(data), digest)


def read_all_facts(
    paths: Sequence[str], on_done: Callable[[int], None] = lambda count: None
) -> dict[str, PictureFacts]:
    """Facts by path. More than IN_PROCESS pictures are spread over the Ray cluster, which must be running then.

    Args:
        on_done: called with the number of pictures read so far.
    """
    distinct = list(dict.fromkeys(paths))
    facts: dict[str, PictureFacts] = {}
    blocks = (distinct[start : start + _BLOCK] for start in range(0, len(distinct), _BLOCK))
    if len(distinct) <= IN_PROCESS:
        tables = (facts_table(pa.table({"path": block})) for block in blocks)
    else:
        import ray.data

        from datasets_manifest.stream.ray_stream import quiet

        quiet()
        dataset = ray.data.from_blocks([pa.table({"path": block}) for block in blocks])
        mapped = dataset.map_batches(facts_table, batch_size=None, batch_format="pyarrow", num_cpus=1)
        tables = mapped.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in tables:
        facts |= {row.pop("path"): PictureFacts(**row) for row in table.to_pylist()}
        on_done(len(facts))
    return facts


def facts_table(table: pa.Table) -> pa.Table:
    """Of FACTS_SCHEMA, for a table with a column `path`."""
    rows = [{"path": path, **vars(read_facts(path))} for path in table["path"].to_pylist()]
    return pa.Table.from_pylist(rows, FACTS_SCHEMA)
