"""Where a training loop's batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.plan import StepSlice


@dataclass
class FeatureBatch:
    """In the place of encoded rows: features of frozen encoders; R = rows, V = views (weak, then strong).

    text: [V·R, K]. picture: [V·R, K']. rows: int64 [R], row numbers in the table. bad, missing: as in HostBatch.
    """

    text: np.ndarray
    picture: np.ndarray
    rows: np.ndarray
    bad: list[tuple[int, str]]
    missing: np.ndarray | None = None


class BatchSource(Protocol):
    """ray_stream.Stream, local_stream.LocalStream, or EvaluationCache before one of them; feature_stream.FeatureStream."""

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch | FeatureBatch]:
        """Both views of the rows of each step, in order."""

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[HostBatch | FeatureBatch]:
        """The weak views of batches of row numbers, in order."""
