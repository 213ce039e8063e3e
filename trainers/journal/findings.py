"""Whether a run worked, from its recipe and its epochs' records: what went wrong, each with what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.journal.journal import EpochRecord
from trainers.recipe import Recipe
from trainers.recipe.base import decided
from trainers.recipe.data_sections import Encoders
from trainers.recipe.training_rule import LEAST_STEPS, what_is_trained

FEW_STEPS = 0.5  # of the rule's least steps: below this share a run is told to be short
LEAST_ROWS_A_CLASS = 10  # of the target, for a class without predictions to mean something


@dataclass(frozen=True)
class Finding:
    """name: for programs. what: what was found. change: what to do about it."""

    name: str
    what: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: {self.change}"


def before_start(recipe: Recipe, steps_per_epoch: int) -> list[Finding]:
    """What is known to go wrong before the first step.

    Args:
        recipe: with all its values.
    """
    epochs = decided(recipe.train.epochs)
    found = [
        never_pseudo_labels(recipe),
        nothing_to_choose_from(epochs),
        idle_layer_decay(recipe),
        idle_prompts(recipe),
        few_steps(recipe, epochs * steps_per_epoch, steps_per_epoch),
    ]
    return [finding for finding in found if finding is not None]


def after_run(
    recipe: Recipe,
    records: Sequence[EpochRecord],
    chosen: EpochRecord,
    *,
    classes: Sequence[str],
    source_labels_N: np.ndarray,
    predicted_N: np.ndarray,
) -> list[Finding]:
    """What went wrong, the gravest first.

    Args:
        records: of all epochs.
        source_labels_N: of the sources' validation rows, -1 where unlabelled.
        predicted_N: classes predicted for the target's training rows in the chosen epoch.
    """
    last = records[-1]
    found = [
        floor_chosen(recipe, chosen),
        sources_at_chance(chosen, source_labels_N),
        one_class(predicted_N, classes),
        vanished_classes(predicted_N, classes),
        never_pseudo_labels(recipe) or unused_pseudo_labels(recipe, records),
        few_steps(
            recipe, last.step, -(-last.step // last.epoch), stopped_early=last.epoch < decided(recipe.train.epochs)
        ),
        nothing_to_choose_from(len(records)),
    ]
    return [finding for finding in found if finding is not None]


def floor_chosen(recipe: Recipe, chosen: EpochRecord) -> Finding | None:
    if chosen.epoch > 0:
        return None
    by = recipe.selection.validator
    what = (
        f"adapted training does not beat the floor here: {by} prefers the linear classifier on the untrained encoders"
    )
    change = (
        "the model of this run is that classifier; other encoders or more data may change it, m2can evaluate compares"
    )
    return Finding("floor", what, change)


def sources_at_chance(chosen: EpochRecord, labels_N: np.ndarray) -> Finding | None:
    """The sources' validation accuracy is not above that of always saying their most frequent class, by two deviations."""
    accuracy, known_N = chosen.metrics.get("source/val/accuracy"), labels_N[labels_N >= 0]
    if accuracy is None or not len(known_N):
        return None
    chance = float(np.bincount(known_N).max()) / len(known_N)
    if accuracy > min(chance + 2 * math.sqrt(chance * (1 - chance) / len(known_N)), 0.99):
        return None
    what = f"the sources are at chance, {100 * accuracy:.1f} % right where one class has {100 * chance:.1f} %"
    change = (
        "the network learned nothing; raise train.epochs or optimizer.lr, and look at the data with m2can data check"
    )
    return Finding("sources-at-chance", what, change)


def one_class(predicted_N: np.ndarray, classes: Sequence[str]) -> Finding | None:
    seen = np.unique(predicted_N)
    if len(seen) != 1 or len(predicted_N) < LEAST_ROWS_A_CLASS:
        return None
    what = f"all {len(predicted_N):,} target records are predicted to be `{classes[int(seen[0])]}`"
    change = "lower objective.mcc and uacr.start, or state the target's class shares in uacr.prior"
    return Finding("one-class", what, change)


def vanished_classes(predicted_N: np.ndarray, classes: Sequence[str]) -> Finding | None:
    counts = np.bincount(predicted_N, minlength=len(classes))
    gone = [name for name, count in zip(classes, counts, strict=True) if not count]
    if not gone or (counts > 0).sum() < 2 or len(predicted_N) < LEAST_ROWS_A_CLASS * len(classes):
        return None
    what = f"no target record is predicted to be {', '.join(f'`{name}`' for name in gone)}"
    change = "if the target has such records, lower uacr.threshold or objective.mcc, or state uacr.prior"
    return Finding("vanished-class", what, change)


def never_pseudo_labels(recipe: Recipe) -> Finding | None:
    """The warm-up is as long as the run."""
    epochs, warmup = decided(recipe.train.epochs), decided(recipe.uacr.warmup)
    if not recipe.uses_pseudo_labels or warmup < epochs:
        return None
    what = f"no pseudo label is ever used: uacr.warmup {warmup} is not below train.epochs {epochs}"
    change = "lower uacr.warmup or raise train.epochs; uacr.enabled=false trains on the target without them"
    return Finding("no-pseudo-labels", what, change)


def unused_pseudo_labels(recipe: Recipe, records: Sequence[EpochRecord]) -> Finding | None:
    """None was selected before the last epoch."""
    used = any(record.metrics.get("uacr/kept", 0) > 0 for record in records[:-1])
    if not recipe.uses_pseudo_labels or used or records[0].epoch > 1:  # the run before may have selected some
        return None
    what = f"no pseudo label was ever used: no score reached uacr.threshold {recipe.uacr.threshold:g}"
    if recipe.uacr.threshold == 0:
        what = "no pseudo label was ever used: the classes' quotas were below one record"
    change = "lower uacr.threshold, raise uacr.start, or train longer, so that the network becomes surer"
    return Finding("no-pseudo-labels", what, change)


def few_steps(recipe: Recipe, steps: int, steps_per_epoch: int, *, stopped_early: bool = False) -> Finding | None:
    least = LEAST_STEPS[what_is_trained(recipe)]
    if steps >= FEW_STEPS * least:
        return None
    what = f"{steps} steps are few for {what_is_trained(recipe)}, which need about {least}"
    change = f"train.epochs={-(-least // steps_per_epoch)}, or a smaller train.batch_size"
    if stopped_early:
        change = "a larger train.patience, or a smaller train.batch_size"
    return Finding("few-steps", what, change)


def idle_layer_decay(recipe: Recipe) -> Finding | None:
    if recipe.optimizer.layer_decay == 1 or what_is_trained(recipe) != "heads on frozen encoders":
        return None
    what = f"optimizer.layer_decay={recipe.optimizer.layer_decay:g} changes nothing, no encoder is trained"
    return Finding("idle-layer-decay", what, "leave it out, or encoders.text.freeze or encoders.picture.freeze=none")


def idle_prompts(recipe: Recipe) -> Finding | None:
    if recipe.encoders.both is not None or recipe.encoders.prompts == Encoders().prompts:
        return None
    what = (
        "encoders.prompts changes nothing, only a dual encoder in encoders.both classifies by the names of the classes"
    )
    return Finding("idle-prompts", what, "leave it out, or name the encoder in encoders.both")


def nothing_to_choose_from(epochs: int) -> Finding | None:
    if epochs > 1:
        return None
    return Finding("one-epoch", "there is one epoch, so no checkpoint to choose", "train.epochs=2 or more")
