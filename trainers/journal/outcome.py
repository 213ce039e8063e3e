"""The outcome of a finished run: its epochs, the chosen checkpoint, the accuracies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets_manifest.records.corpus import Corpus
from trainers.encoders.weight_files import read_tensors
from trainers.failures import RunFailed
from trainers.journal.findings import Finding, after_run
from trainers.journal.journal import EpochRecord
from trainers.model.card import EVALUATION, FLOOR, ZERO_SHOT, ModelCard
from trainers.model.floor_files import floor_metrics
from trainers.recipe import Recipe
from trainers.recipe.base import decided
from trainers.recipe.training_rule import what_is_trained
from trainers.validators import ValidatorInputs, choose_candidate, compare_with_floor, verdicts
from trainers.validators.checked import CheckedAccuracy
from trainers.validators.expected import EXPECTED, ExpectedAccuracy

TARGET_ACCURACY = "target/val/accuracy"


@dataclass(frozen=True)
class FloorResult:
    """What a linear classifier on the untrained encoders' features came to (trainers.m2can.floor).

    chosen: whether it was chosen in the place of an epoch. folder: as that of a checkpoint. metrics: named as an epoch's; the
    score is that of `compare_with_floor`, which compares with the chosen epoch's.
    """

    chosen: bool
    folder: Path
    metrics: dict[str, float] = field(repr=False)

    @property
    def zero_shot(self) -> dict[str, float] | None:
        """Metrics of the zero-shot classifier, named as an epoch's; None if the network did not begin as a dual encoder."""
        start = "zero_shot/"
        return {name.removeprefix(start): x for name, x in self.metrics.items() if name.startswith(start)} or None

    def numbers(self) -> dict[str, Any]:
        """As they stand in summary.json and in the command's last line; accuracies are None without labels."""
        return {
            "chosen": self.chosen,
            "checkpoint": str(self.folder),
            "source_accuracy": self.metrics.get("source/val/accuracy"),
            "selection_score": self.metrics.get("selection/score"),
            "target_accuracy": self.metrics.get(TARGET_ACCURACY),
            "target_accuracy_expected": self.metrics.get(EXPECTED),
            "zero_shot": None if self.zero_shot is None else self._of_zero_shot(self.zero_shot),
        }

    def _of_zero_shot(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {
            "checkpoint": str(self.folder.with_name(ZERO_SHOT)),
            "source_accuracy": metrics.get("source/val/accuracy"),
            "target_accuracy": metrics.get(TARGET_ACCURACY),
        }


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    chosen, last: records of those epochs; chosen is of epoch 0 if the floor was chosen. oracle: the epoch best by target
    labels, None without labels.
    checkpoint: the chosen epoch's folder, or the floor's. checkpoints: of all epochs that were kept, by epoch; of the floor by 0
    if it was chosen. floor: None if the run has none.
    findings: what went wrong, with what to change.
    """

    name: str
    folder: Path
    card: ModelCard
    corpus: Corpus
    records: list[EpochRecord]
    chosen: EpochRecord
    last: EpochRecord
    oracle: EpochRecord | None
    checkpoint: Path
    checkpoints: dict[int, Path]
    findings: list[Finding] = field(default_factory=list)
    floor: FloorResult | None = None

    @property
    def expected(self) -> ExpectedAccuracy | None:
        """What the chosen epoch's predictions let expect of its accuracy on the target; no label of the target is read."""
        return ExpectedAccuracy.from_metrics(self.chosen.metrics)

    @property
    def checked(self) -> CheckedAccuracy | None:
        """The chosen epoch's accuracy on the target's labels that were given and held out."""
        return CheckedAccuracy.from_metrics(self.chosen.metrics)

    def accuracies(self) -> dict[str, float | None]:
        """Target validation accuracy of the chosen, the last and the oracle epoch, 0 to 1, and the regret (oracle less
        chosen), None without labels; what is expected of the chosen one's without labels, None if it is not known; what it is
        on the target's labels that were held out, None without them."""
        chosen, last, oracle = (
            record.metrics.get(TARGET_ACCURACY) if record else None for record in (self.chosen, self.last, self.oracle)
        )
        return {
            "target_accuracy_chosen": chosen,
            "target_accuracy_last": last,
            "target_accuracy_oracle": oracle,
            "regret": oracle - chosen if oracle is not None and chosen is not None else None,
            "target_accuracy_expected": self.expected.accuracy if self.expected else None,
            "target_accuracy_expected_low": self.expected.low if self.expected else None,
            "target_accuracy_expected_high": self.expected.high if self.expected else None,
            "target_accuracy_checked": self.checked.accuracy if self.checked else None,
            "target_accuracy_checked_low": self.checked.low if self.checked else None,
            "target_accuracy_checked_high": self.checked.high if self.checked else None,
        }

    def numbers(self) -> dict[str, Any]:
        """Validator, epochs, why it ended early, and accuracies, as they stand in summary.json and in the command's last line."""
        return {
            "validator": self.card.recipe.selection.validator,
            "started_from": self.card.started_from,
            "chosen_epoch": self.chosen.epoch,
            "last_epoch": self.last.epoch,
            "oracle_epoch": self.oracle.epoch if self.oracle else None,
            "stopped_early": stopped_early(self.card.recipe, self.records),
            "floor": None if self.floor is None else self.floor.numbers(),
            **self.accuracies(),
        }


def choose_epoch_of(
    name: str,
    folder: Path,
    card: ModelCard,
    corpus: Corpus,
    records: list[EpochRecord],
    kept: Mapping[int, Path],
    floor: bool = True,
) -> Outcome:
    """Choose among the epochs whose checkpoints were kept, by the recipe's validator, and then between that epoch and the
    floor.

    Args:
        kept: epoch → checkpoint.
        floor: whether the floor may be chosen.

    Raises:
        RunFailed: no epoch has a checkpoint.
        InputError: a checkpoint is damaged.
    """
    candidates = [record for record in records if record.epoch in kept]
    if not candidates:
        raise RunFailed(
            f"{name} ended and no epoch has both a checkpoint and a record in the journal; {folder / 'logs'} says what the "
            "workers did"
        )
    inputs = [read_validator_inputs(kept[record.epoch]) for record in candidates]
    selection = card.recipe.selection
    position = choose_candidate(selection.validator, inputs, selection.gate)
    chosen, checkpoints = candidates[position], dict(kept)
    found_floor = compare_floor(card.recipe, folder, inputs[position]) if floor else None
    if found_floor is not None and found_floor.chosen:
        chosen, checkpoints[0] = EpochRecord(0, 0, 0.0, found_floor.metrics), found_floor.folder
    predicted = read_tensors(checkpoints[chosen.epoch] / EVALUATION)
    target = corpus.train[-1]
    of_sources = [corpus.labels[part.start : part.stop] for part in corpus.val[:-1] if part is not None]
    labelled = [record for record in records if TARGET_ACCURACY in record.metrics]
    return Outcome(
        name=name,
        folder=folder,
        card=card,
        corpus=corpus,
        records=records,
        chosen=chosen,
        last=records[-1],
        oracle=max(labelled, key=lambda record: record.metrics[TARGET_ACCURACY], default=None),
        checkpoint=checkpoints[chosen.epoch],
        checkpoints=checkpoints,
        findings=after_run(
            card.recipe,
            records,
            chosen,
            classes=card.classes,
            source_labels_N=np.concatenate(of_sources) if of_sources else np.empty(0, np.int64),
            predicted_N=predicted[f"{target.domain}/{target.split}/label"].numpy(),
        ),
        floor=found_floor,
    )


def verdicts_of(outcome: Outcome) -> list[dict[str, Any]]:
    """What every validator would have chosen among the epochs that were kept: {validator, epoch, accuracy, regret}, accuracies by
    target labels. It takes a second or more: some of them fit a classifier to each epoch's features."""
    candidates = [record for record in outcome.records if record.epoch in outcome.checkpoints]
    inputs = [read_validator_inputs(outcome.checkpoints[record.epoch]) for record in candidates]
    accuracies = [record.metrics.get(TARGET_ACCURACY) for record in candidates]
    found = verdicts(inputs, accuracies, outcome.card.recipe.selection.gate)
    return [{"epoch": candidates[row.pop("position")].epoch, **row} for row in found]


def floor_alone(name: str, folder: Path, card: ModelCard, corpus: Corpus, metrics: dict[str, float]) -> Outcome:
    """The outcome of a run that found the floor and trained nothing."""
    record = EpochRecord(0, 0, time.time(), metrics)
    place = folder / FLOOR
    return Outcome(
        name=name,
        folder=folder,
        card=card,
        corpus=corpus,
        records=[record],
        chosen=record,
        last=record,
        oracle=None,
        checkpoint=place,
        checkpoints={0: place},
        floor=FloorResult(True, place, metrics),
    )


def compare_floor(recipe: Recipe, run: Path, epoch: ValidatorInputs) -> FloorResult | None:
    """The run's floor, and whether it is preferred to the chosen epoch; None if the run has none.

    Encoders that start at random have no features yet: their floor is shown and not chosen.
    """
    metrics = floor_metrics(run)
    if metrics is None:
        return None
    folder, selection = run / FLOOR, recipe.selection
    found = compare_with_floor(selection.validator, read_validator_inputs(folder), epoch, selection.gate)
    chosen = found.prefers_floor and what_is_trained(recipe) != "random encoders"
    return FloorResult(chosen, folder, metrics | {"selection/score": found.score})


def stopped_early(recipe: Recipe, records: Sequence[EpochRecord]) -> str | None:
    """Where and why a run ended before its last epoch, in words; None if it did not."""
    patience, epochs, last = recipe.train.patience, decided(recipe.train.epochs), records[-1].epoch
    if patience is None or last >= epochs:
        return None
    scores = {
        record.epoch: record.metrics["selection/score"] for record in records if "selection/score" in record.metrics
    }
    best = max(scores, key=lambda epoch: scores[epoch], default=None)
    than = "" if best is None else f" better than epoch {best}'s {scores[best]:.4g}"
    return f"after epoch {last} of {epochs}: no selection score{than} in {patience} epochs (train.patience)"


def link_best(outcome: Outcome) -> None:
    """Make `best` in the run's folder a link to the chosen checkpoint, where the file system has links."""
    link_to(outcome.checkpoint, outcome.folder / "best")


def link_to(checkpoint: Path, link: Path) -> None:
    """Make `link` a link to a checkpoint, in the place of one that is there, where the file system has links."""
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(checkpoint, link.parent), target_is_directory=True)


def read_validator_inputs(checkpoint: Path) -> ValidatorInputs:
    """What an epoch's model predicted for the rows set aside for choosing. Raises InputError: missing or damaged."""
    tensors = read_tensors(checkpoint / EVALUATION)
    return ValidatorInputs.from_arrays({name: tensor.numpy() for name, tensor in tensors.items()})
