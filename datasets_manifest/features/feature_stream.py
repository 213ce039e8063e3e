"""Batches of features that were computed before, in the place of encoded rows: nothing is read or decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets_manifest.features.feature_files import Features
from datasets_manifest.stream.encode import Encoding
from datasets_manifest.stream.plan import StepSlice
from datasets_manifest.stream.source import FeatureBatch


@dataclass(frozen=True)
class FeatureStream:
    """A BatchSource. An epoch e takes the strong view e mod n of the n that there are."""

    features: Features

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[FeatureBatch]:
        """The weak view and the epoch's strong one of the rows of each step, in order."""
        strong = 1 + encoding.epoch % self.features.strong_views
        return (self._batch(slice_.rows_DB.ravel(), [0, strong]) for slice_ in slices)

    def evaluate(self, batches: list[np.ndarray], encoding: Encoding) -> Iterator[FeatureBatch]:
        """The weak views of rows, batch by batch."""
        return (self._batch(rows, [0]) for rows in batches)

    def _batch(self, rows: np.ndarray, views: list[int]) -> FeatureBatch:
        text, picture = (
            np.concatenate([array_VNK[view, rows] for view in views])
            for array_VNK in (self.features.text_VNK, self.features.picture_VNK)
        )
        bad = [(int(row), message) for row in rows for message in self.features.bad.get(int(row), ())]
        missing = self.features.missing_N2
        return FeatureBatch(
            text, picture, rows, bad, None if missing is None else np.tile(missing[rows], (len(views), 1))
        )
