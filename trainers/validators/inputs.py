"""A candidate's predictions for the rows set aside for choosing. No label of the target is among them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

PREFIX = "evidence/"
MOST_ROWS = 2048  # of the target and of the sources, spread evenly: a bound on what is computed and stored


@dataclass(frozen=True)
class ValidatorInputs:
    """See trainers.validators for the suffixes. Features are the fused ones before the classifier heads.

    mixed_probs_RC: predictions for mixtures of target rows (selection.mixing); mixed_dominant_R, mixed_other_R: the
    classes predicted for what was mixed.
    """

    target_probs_NC: np.ndarray
    target_features_NK: np.ndarray
    source_probs_MC: np.ndarray
    source_features_MK: np.ndarray
    source_labels_M: np.ndarray
    mixed_probs_RC: np.ndarray
    mixed_dominant_R: np.ndarray
    mixed_other_R: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names under which they stand in a checkpoint's evaluation.safetensors."""
        return {PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ValidatorInputs:
        """Raises KeyError: one is missing."""
        return cls(**{field.name: arrays[PREFIX + field.name] for field in fields(cls)})

    @property
    def source_losses_M(self) -> np.ndarray:
        """1 where a source row is predicted wrongly, else 0."""
        return (self.source_probs_MC.argmax(1) != self.source_labels_M).astype(float)


def spread(rows: np.ndarray, most: int = MOST_ROWS) -> np.ndarray:
    """At most `most` of the rows, evenly spread, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
