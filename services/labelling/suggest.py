"""Which of the target's records are most worth a label, by a model that was trained without them.

Half of those asked for are chosen, to train on: uncertain, of disagreeing modalities, and unlike each other. The other half
is drawn by chance, to measure the accuracy: what is chosen for being hard would measure too little.

Legend: N record, C class, K fused feature.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError
from datasets_manifest.records.target_labels import CHECK, TRAIN
from trainers.model.inspection import Inspector
from trainers.validators.inputs import spread

MOST_RECORDS = 20_000  # that are looked at, evenly spread
CHECKED_SHARE = 0.5
CSV_COLUMNS = ("id", "purpose", "label", "predicted", "confidence", "worth", "texts", "images")


@dataclass(frozen=True)
class Suggestion:
    """A record of the target that waits for a label.

    purpose: `train` or `check`. predicted, confidence: what the model says. worth: its uncertainty times one and its
    modalities' disagreement, 0 to 2.
    """

    id: str
    purpose: str
    predicted: str
    confidence: float
    worth: float
    texts: list[str]
    images: list[str]


def suggest(
    predictor: Inspector, records: pa.Table, number: int, *, seed: int = 0, labelled: Iterable[str] = ()
) -> list[Suggestion]:
    """The records most worth a label and those drawn by chance, in an order that tells nothing of which is which.

    Args:
        records: the target's training records, of readers.TABLE_SCHEMA.
        number: how many; half of them, rounded down, are drawn by chance.
        labelled: ids that have a label already; they are left out.

    Raises:
        InputError: fewer than `number` records can be predicted.
    """
    known = set(labelled)
    rows = np.array([n for n, identity in enumerate(records["id"].to_pylist()) if identity not in known], np.int64)
    rows = spread(rows, MOST_RECORDS)
    table = records.take(rows)
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    found = predictor.predict_usable(texts, images)
    usable = np.flatnonzero(~np.isnan(found.probs).any(1))
    if len(usable) < number:
        problem = "more than the target's training records without a label that can be read"
        raise InputError(problem, field="--n", value=number, wanted=f"at most {len(usable)}")
    worth_N = worth(
        found.probs[usable], predictor.modality_probs(texts, images)[:, usable], _has_both(texts, images)[usable]
    )
    draw = np.random.default_rng(seed)
    by_chance = draw.permutation(len(usable))[: int(number * CHECKED_SHARE)]
    rest = np.setdiff1d(np.arange(len(usable)), by_chance)
    chosen = rest[most_worth(worth_N[rest], found.features[usable][rest], number - len(by_chance))]
    purposes = dict.fromkeys(by_chance.tolist(), CHECK) | dict.fromkeys(chosen.tolist(), TRAIN)
    shuffled = draw.permutation(np.array(sorted(purposes)))
    ids = table["id"].to_pylist()
    return [
        Suggestion(
            id=ids[place],
            purpose=purposes[int(n)],
            predicted=str(found.labels[place]),
            confidence=float(found.confidence[place]),
            worth=float(worth_N[n]),
            texts=texts[place],
            images=images[place],
        )
        for n, place in zip(shuffled, usable[shuffled], strict=True)
    ]


def worth(probs_NC: np.ndarray, modality_probs_2NC: np.ndarray, has_both_N: np.ndarray) -> np.ndarray:
    """Entropy of the prediction over that of a guess, times one and the modalities' Jensen-Shannon divergence in bits; 0 to 2."""
    text_NC, picture_NC = modality_probs_2NC
    divergence_N = _entropy((text_NC + picture_NC) / 2) - (_entropy(text_NC) + _entropy(picture_NC)) / 2
    disagreement_N = np.where(has_both_N, divergence_N / np.log(2), 0.0).clip(0, 1)
    return _entropy(probs_NC) / np.log(probs_NC.shape[1]) * (1 + disagreement_N)


def most_worth(worth_N: np.ndarray, features_NK: np.ndarray, number: int) -> np.ndarray:
    """Places of `number` records: those nearest to the centres of as many clusters of the features, in which a record weighs
    as much as it is worth.

    Source: Prabhu et al., "Active Domain Adaptation via Clustering Uncertainty-weighted Embeddings", ICCV 2021,
    arXiv:2010.08666.
    """
    from sklearn.cluster import KMeans  # here: it takes a second to import

    if number >= len(worth_N):
        return np.arange(len(worth_N))
    clusters = KMeans(number, n_init=1, random_state=0).fit(features_NK, sample_weight=worth_N + 1e-9)
    free = np.ones(len(worth_N), bool)
    chosen = []
    for centre_K in clusters.cluster_centers_:
        distance_N = np.where(free, np.square(features_NK - centre_K).sum(1), np.inf)
        chosen.append(int(distance_N.argmin()))
        free[chosen[-1]] = False
    return np.array(chosen, np.int64)


def table_of(suggestions: list[Suggestion]) -> str:
    """CSV with an empty column `label`; texts of a record are joined by a line end, pictures by `;`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in suggestions:
        row: list[Any] = [one.id, one.purpose, "", one.predicted, f"{one.confidence:.3f}", f"{one.worth:.3f}"]
        writer.writerow([*row, "\n".join(one.texts), ";".join(one.images)])
    return text.getvalue()


def _entropy(probs_NC: np.ndarray) -> np.ndarray:
    entropy_N: np.ndarray = -(probs_NC * np.log(probs_NC.clip(1e-12))).sum(1)
    return entropy_N


def _has_both(texts: list[list[str]], images: list[list[str]]) -> np.ndarray:
    return np.array([bool(some) and bool(others) for some, others in zip(texts, images, strict=True)])
