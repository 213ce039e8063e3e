"""The views of a record that features are computed of: the weak one, and strong ones of the first epochs."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from datasets_manifest.features.feature_files import views_of
from datasets_manifest.stream.encode import Encoding, HostBatch, collate, encode_rows

_COLUMNS = ("tokens", "pictures", "num_pictures")


def encode_views(index: pa.Table, table: pa.Table, encoding: Encoding, strong: int) -> pa.Table:
    """Read and encode rows of `table` in all their views.

    The weak view is that of evaluation. Strong view k is drawn by (seed, epoch k, row, position 0), as the plan of a
    training epoch would draw it.

    Args:
        index: of encode.INDEX_SCHEMA, with positions 0.
        encoding: of evaluation.
        strong: number of strong views.

    Returns:
        index with `bad` and, for each of views_of(strong), `tokens_<view>`, `pictures_<view>` and `num_pictures_<view>`.
    """
    weak = encode_rows(index, table, encoding)
    found = index.append_column("bad", weak["bad"])
    for number, view in enumerate(views_of(strong)):
        made, which = weak, "weak"
        if number:
            made, which = encode_rows(index, table, replace(encoding, epoch=number - 1, strong=True)), "strong"
        for name, column in zip(_COLUMNS, (f"tokens_{which}", f"pictures_{which}", "num_pictures"), strict=True):
            found = found.append_column(f"{name}_{view}", made[column])
    return found


def collate_view(encoded: pa.Table, view: str, encoding: Encoding) -> HostBatch:
    """One view of what `encode_views` made, as a batch of one view."""
    tokens, pictures, counts = (encoded[f"{name}_{view}"] for name in _COLUMNS)
    columns = {"row": encoded["row"], "bad": encoded["bad"], "num_pictures": counts}
    return collate(pa.table({**columns, "tokens_weak": tokens, "pictures_weak": pictures}), encoding)
