"""A model's reference against records of a manifest, or against a sample of what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import read_for_prediction, read_split
from services.drift.comparison import Drift, compare
from services.drift.sample import read_sample
from trainers.exported.predictor import load_predictor
from trainers.model.card import ModelCard, load_card
from trainers.model.predictor import Predictor
from trainers.model.reference import MOST_RECORDS, Seen, SourceScores, fingerprint
from trainers.validators.expected import ExpectedAccuracy

_MOST_OF_MANIFEST = 2000  # records that are predicted, drawn at random


@dataclass(frozen=True)
class Checked:
    """drift: see there. before, now: what was compared. on: the latter in words. notes: what a reader must know beside it.
    expected: accuracy of the predictions; None: the model does not keep what it is estimated from.
    """

    drift: Drift
    before: Seen
    now: Seen
    on: str
    notes: list[str]
    expected: ExpectedAccuracy | None = None


def check_drift(model: Path, on: str, split: str) -> Checked:
    """Compare records with those of a model's training.

    Args:
        model: its folder.
        on: a manifest, whose records are predicted, or a sample's file `.parquet`, in which they are already.
        split: of the manifest.

    Raises:
        InputError: nothing to compare with, no such manifest or sample, or too few records.
    """
    card, notes = load_card(model), []
    reference = Seen.read(model)
    if on.endswith(".parquet"):
        sample = read_sample(Path(on), fingerprint(model))
        now = sample.seen
        about = f"{len(now):,} of {sample.predicted:,} records, {sample.first:%Y-%m-%d %H:%M} to {sample.last:%Y-%m-%d %H:%M} UTC"
    else:
        table = read_for_prediction(load_manifest(on), split)
        now, about = _seen(load_predictor(model), table, _MOST_OF_MANIFEST), f"{on}, {split}"
        if len(now) < table.num_rows:
            about += f": {len(now):,} of {table.num_rows:,} records"
    if reference is None:
        reference, where = _of_target(model, card)
        notes.append(
            f"the model keeps no records of its training to compare with, as those of earlier versions; {where} was predicted "
            "anew in their place, as far as it is what it was then"
        )
    sources = SourceScores.read(model)
    expected = None if sources is None else sources.expected_accuracy(now)
    return Checked(compare(reference, now, card.classes), reference, now, about, notes, expected)


def _of_target(model: Path, card: ModelCard) -> tuple[Seen, str]:
    """What the model sees of its target today, and where that is."""
    file = Path(card.recipe.data.target)
    if not file.is_file():
        problem = "keeps no records of its training to compare with, as models of earlier versions, and its target is not here"
        wanted = f"the target's manifest at {file}, or a model trained anew, which keeps them"
        raise InputError(problem, field="MODEL", value=str(model), wanted=wanted)
    manifest = load_manifest(file)
    data = card.recipe.data
    split = data.val_split if data.val_split in manifest.splits else data.train_split
    seen = _seen(load_predictor(model), read_split(manifest, split).table, MOST_RECORDS)
    return seen, f"{file}, {split}"


def _seen(predictor: Predictor, table: pa.Table, most: int) -> Seen:
    if table.num_rows > most:
        table = table.take(np.sort(np.random.default_rng(0).permutation(table.num_rows)[:most]))
    return predictor.predict_usable(table["texts"].to_pylist(), table["images"].to_pylist()).seen
