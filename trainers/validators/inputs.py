"""A candidate's predictions for the rows set aside for choosing. No label of the target is among them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from trainers.validators.reweighting import density_ratio

PREFIX = "evidence/"
MOST_ROWS = 2048  # of the target and of the sources, spread evenly: a bound on what is computed and stored


@dataclass(frozen=True)
class ValidatorInputs:
    """See trainers.validators for the suffixes. Features are the fused ones before the classifier heads.

    mixed_probs_RC: predictions for mixtures of target rows (validators.mixing); mixed_dominant_R, mixed_other_R: the
    classes predicted for what was mixed.
    target_modalities_2N, source_modalities_2M: the classes that the text head and the picture head predict; None in
    checkpoints of older versions.
    """

    target_probs_NC: np.ndarray
    target_features_NK: np.ndarray
    source_probs_MC: np.ndarray
    source_features_MK: np.ndarray
    source_labels_M: np.ndarray
    mixed_probs_RC: np.ndarray
    mixed_dominant_R: np.ndarray
    mixed_other_R: np.ndarray
    target_modalities_2N: np.ndarray | None = None
    source_modalities_2M: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names under which they stand in a checkpoint's evaluation.safetensors."""
        named = {PREFIX + field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ValidatorInputs:
        """Raises KeyError: one is missing that checkpoints always had."""
        optional = {field.name for field in fields(cls) if field.default is None}
        names = [field.name for field in fields(cls) if field.name not in optional or PREFIX + field.name in arrays]
        return cls(**{name: arrays[PREFIX + name] for name in names})

    @property
    def source_losses_M(self) -> np.ndarray:
        """1 where a source row is predicted wrongly, else 0."""
        return (self.source_probs_MC.argmax(1) != self.source_labels_M).astype(float)

    @cached_property
    def source_weights_M(self) -> np.ndarray:
        """How much each source row looks like the target: reweighting.density_ratio."""
        return density_ratio(self.source_features_MK, self.target_features_NK)


def spread(rows: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """At most `most` of the rows, evenly spread, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
