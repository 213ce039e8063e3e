"""A cache of the weak views that are scored after every epoch: those that fit are kept in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.plan import StepSlice
from datasets_manifest.stream.source import BatchSource, FeatureBatch


class EvaluationCache:
    """`source`, whose evaluated batches are kept from one call to the next, the first ones that fit.

    Args:
        most_bytes: of encoded rows; what does not fit is read and encoded each time.
    """

    def __init__(self, source: BatchSource, most_bytes: int = 2**30) -> None:
        self.source, self.most_bytes = source, most_bytes
        self.bytes = 0
        self._kept: dict[bytes, HostBatch | FeatureBatch] = {}
        self._encoding: Encoding | None = None

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch | FeatureBatch]:
        """As `source` does it: strong views are new in every epoch."""
        return self.source.train(slices, encoding)

    def evaluate(
        self, batches: list[np.ndarray], encoding: Encoding, kept: int | None = None
    ) -> Iterator[HostBatch | FeatureBatch]:
        """The weak views of rows, batch by batch; a batch that was kept is the very same one.

        Args:
            kept: how many of the batches, from the first on, will be asked for again; None: all.
        """
        if encoding != self._encoding:
            self._kept, self._encoding, self.bytes = {}, encoding, 0
        names = [rows.tobytes() for rows in batches]
        fresh = self.source.evaluate(
            [rows for rows, name in zip(batches, names, strict=True) if name not in self._kept], encoding
        )
        for number, name in enumerate(names):
            host = self._kept.get(name)
            if host is None:
                host = next(fresh)
                if kept is None or number < kept:
                    self._keep(name, host)
            yield host

    def bytes_of(self, batches: int) -> int:
        """Bytes that so many batches like those in the cache will take."""
        return min(self.most_bytes, self.bytes * batches // max(1, len(self._kept)))

    def _keep(self, name: bytes, host: HostBatch | FeatureBatch) -> None:
        size = host_bytes(host)
        if self.bytes + size <= self.most_bytes:
            self._kept[name] = host
            self.bytes += size


def host_bytes(host: HostBatch | FeatureBatch) -> int:
    """Bytes of a batch's arrays."""
    return sum(value.nbytes for value in vars(host).values() if isinstance(value, np.ndarray))
