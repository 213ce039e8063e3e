"""What a model saw of some records: its predictions, the features behind them, and facts of the inputs; none of their content.

A checkpoint's folder `model` holds it of records of the target (reference.safetensors), so that records that come after
deployment can be compared with those of training.

Legend: N record, C class, K fused feature, F fact, P picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Tokenizer

from datasets_manifest.errors import InputError
from datasets_manifest.files import digest
from datasets_manifest.stream.encode import HostBatch
from datasets_manifest.stream.source import FeatureBatch
from trainers.encoders.weight_files import WEIGHTS, read_tensors
from trainers.validators.expected import ExpectedAccuracy, expected_accuracy
from trainers.validators.inputs import ValidatorInputs, spread

SEEN_FILE = "reference.safetensors"
PREFIX = "reference/"  # of its tensors among those of an epoch
MOST_RECORDS = 512
FACTS = {
    "tokens": "tokens of the text",
    "unknown": "unknown tokens, share of the text",
    "pictures": "pictures",
    "brightness": "brightness of the pictures",
    "contrast": "contrast of the pictures",
}
_SOURCE_PROBS, _SOURCE_LABELS = f"{PREFIX}source_probs", f"{PREFIX}source_labels"
_EVERY = 4  # pixels of a side: brightness and contrast are those of a sixteenth of a picture


@dataclass(frozen=True)
class Seen:
    """Of N records. probs_NC: predicted. features_NK: fused, before the classifier heads. facts_NF: in the order of FACTS; NaN
    where a record has none, as the brightness of no picture."""

    probs_NC: np.ndarray
    features_NK: np.ndarray
    facts_NF: np.ndarray

    def __len__(self) -> int:
        return len(self.probs_NC)

    def fact(self, name: str) -> np.ndarray:
        """One of FACTS, of the records that have it."""
        column = self.facts_NF[:, list(FACTS).index(name)]
        return column[~np.isnan(column)]

    def take(self, rows: Sequence[int] | np.ndarray) -> Seen:
        return Seen(self.probs_NC[rows], self.features_NK[rows], self.facts_NF[rows])

    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names among the tensors of an epoch."""
        arrays = {"probs": self.probs_NC, "features": self.features_NK, "facts": self.facts_NF}
        return {PREFIX + name: torch.from_numpy(np.asarray(x, np.float32)) for name, x in arrays.items()}

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Of a model's folder; None: it has none, because an earlier version or no run of ours made it.

        Raises:
            InputError: damaged.
        """
        if not (folder / SEEN_FILE).is_file():
            return None
        tensors = read_tensors(folder / SEEN_FILE)
        try:
            return cls(*(tensors[PREFIX + name].numpy() for name in ("probs", "features", "facts")))
        except KeyError as error:
            raise InputError(f"lacks {error}", file=folder / SEEN_FILE) from None


@dataclass(frozen=True)
class SourceScores:
    """Of M validation records of the sources: predicted probabilities and labels, by which the accuracy for other records is
    estimated."""

    probs_MC: np.ndarray
    labels_M: np.ndarray

    @classmethod
    def of(cls, inputs: ValidatorInputs) -> SourceScores:
        """Of an epoch's, in no order."""
        rows = spread(np.random.default_rng(0).permutation(len(inputs.source_labels_M)), MOST_RECORDS)
        return cls(inputs.source_probs_MC[rows], inputs.source_labels_M[rows])

    def tensors(self) -> dict[str, torch.Tensor]:
        """As Seen.tensors."""
        labels = torch.from_numpy(np.asarray(self.labels_M, np.int32))
        return {_SOURCE_PROBS: torch.from_numpy(np.asarray(self.probs_MC, np.float32)), _SOURCE_LABELS: labels}

    @classmethod
    def read(cls, folder: Path) -> SourceScores | None:
        """Of a model's folder; None: it has none."""
        tensors = read_tensors(folder / SEEN_FILE) if (folder / SEEN_FILE).is_file() else {}
        if _SOURCE_PROBS not in tensors or _SOURCE_LABELS not in tensors:
            return None
        return cls(tensors[_SOURCE_PROBS].numpy(), tensors[_SOURCE_LABELS].numpy())

    def expected_accuracy(self, now: Seen) -> ExpectedAccuracy | None:
        """Of predictions for records without labels; see trainers.validators.expected."""
        nothing = np.empty((0, 0))
        return expected_accuracy(
            ValidatorInputs(
                target_probs_NC=now.probs_NC,
                target_features_NK=now.features_NK,
                source_probs_MC=self.probs_MC,
                source_features_MK=nothing,
                source_labels_M=self.labels_M,
                mixed_probs_RC=nothing,
                mixed_dominant_R=nothing,
                mixed_other_R=nothing,
            )
        )


def split_reference(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of an epoch without those of its reference, and those."""
    of_reference = {name: x for name, x in tensors.items() if name.startswith(PREFIX)}
    return {name: x for name, x in tensors.items() if name not in of_reference}, of_reference


def fingerprint(folder: Path) -> str:
    """What tells the model in `folder` from every other one: predictions of two models are not compared with each other."""
    file = folder / (SEEN_FILE if (folder / SEEN_FILE).is_file() else WEIGHTS)
    if file.is_file():
        return str(digest(file)["sha256"])[:16]
    return hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()[:16]


def facts_of(host: HostBatch | FeatureBatch, unknown_id: int | None) -> np.ndarray:
    """FACTS of the records of one view, [N, F]. Of features that were computed before nothing is known.

    Args:
        unknown_id: of the token that stands for what the vocabulary has not; None: there is none.
    """
    if isinstance(host, FeatureBatch):
        return np.full((len(host.rows), len(FACTS)), np.nan, np.float32)
    records = len(host.tokens)
    facts_NF = np.empty((records, len(FACTS)), np.float32)
    tokens_N = host.mask.sum(1)
    facts_NF[:, 0] = tokens_N
    unknown_N = ((host.tokens == unknown_id) & (host.mask > 0)).sum(1) if unknown_id is not None else 0
    facts_NF[:, 1] = unknown_N / np.maximum(tokens_N, 1)
    pictures_N = np.bincount(host.owner, minlength=records)[:records]
    facts_NF[:, 2] = pictures_N
    some_PHWC = host.pictures[:, ::_EVERY, ::_EVERY]
    for column, of_picture_P in ((3, some_PHWC.mean((1, 2, 3)) / 255), (4, some_PHWC.std((1, 2, 3)) / 255)):
        sums_N = np.bincount(host.owner, weights=of_picture_P, minlength=records)[:records]
        facts_NF[:, column] = np.where(pictures_N > 0, sums_N / np.maximum(pictures_N, 1), np.nan)
    return facts_NF


@lru_cache(maxsize=8)
def unknown_token(tokenizer: str) -> int | None:
    """Number of the token for what is not in the vocabulary. Args: tokenizer: the content of a tokenizer.json."""
    model = json.loads(tokenizer).get("model", {})
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    token = model.get("unk_token")
    return Tokenizer.from_str(tokenizer).token_to_id(token) if isinstance(token, str) else None
