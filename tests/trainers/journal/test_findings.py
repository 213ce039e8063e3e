"""Each finding, where it is due and where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainers.journal import findings
from trainers.journal.journal import EpochRecord
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.training_rule import decide

CLASSES = ["bad", "middling", "good"]
LABELS = np.arange(90) % 3
TINY = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}


def recipe(**keys: Any) -> Recipe:
    tree = {"data": {"sources": ["a", "b"], "target": "c"}, "encoders": TINY} | keys
    return decide(make_recipe(tree), rows=600)[0]


def record(epoch: int, **metrics: float) -> EpochRecord:
    good = {"source/val/accuracy": 0.9, "uacr/kept": 30.0}
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return EpochRecord(epoch, epoch * 40, 0.0, good | named)


def names(recipe_: Recipe, records: list[EpochRecord], predicted_N: np.ndarray = LABELS) -> list[str]:
    found = findings.after_run(
        recipe_, records, records[-1], classes=CLASSES, source_labels_N=LABELS, predicted_N=predicted_N
    )
    assert all(finding.what and finding.change for finding in found)
    return [finding.name for finding in found]


GOOD = [record(epoch) for epoch in range(1, 11)]


def test_a_run_that_worked_has_no_findings() -> None:
    assert names(recipe(), GOOD) == []
    assert findings.before_start(recipe(), steps_per_epoch=40) == []


@pytest.mark.parametrize(("accuracy", "found"), [(0.33, True), (0.42, True), (0.45, False), (0.95, False)])
def test_sources_at_chance(accuracy: float, found: bool) -> None:
    """Of 90 labels in equal parts: a third is chance, and two deviations are ten points."""
    records = [*GOOD, record(11, source__val__accuracy=accuracy)]
    assert ("sources-at-chance" in names(recipe(), records)) == found


def test_chance_is_the_most_frequent_class() -> None:
    labels = np.array([0] * 80 + [1] * 20 + [-1] * 50)
    assert findings.sources_at_chance(record(1, source__val__accuracy=0.8), labels) is not None
    assert findings.sources_at_chance(record(1, source__val__accuracy=0.95), labels) is None
    assert findings.sources_at_chance(record(1), np.full(9, -1)) is None


def test_one_class_for_all_records() -> None:
    assert names(recipe(), GOOD, np.full(60, 2)) == ["one-class"]
    assert "`good`" in findings.one_class(np.full(60, 2), CLASSES).what  # type: ignore[union-attr]


def test_a_class_that_vanished() -> None:
    assert names(recipe(), GOOD, np.arange(60) % 2) == ["vanished-class"]
    assert findings.vanished_classes(np.array([0, 1, 0]), CLASSES) is None  # too few records to say


def test_pseudo_labels_that_never_come() -> None:
    late = recipe(uacr={"warmup": 10}, train={"epochs": 10})
    assert [finding.name for finding in findings.before_start(late, 40)] == ["no-pseudo-labels"]
    assert names(late, GOOD) == ["no-pseudo-labels"]
    none = [record(epoch, uacr__kept=0.0) for epoch in range(1, 10)]
    assert names(recipe(), [*none, record(10)]) == ["no-pseudo-labels"]  # those of the last epoch train nothing
    off = recipe(uacr={"enabled": False, "warmup": 10}, train={"epochs": 10})
    assert names(off, none) == [] and findings.before_start(off, 40) == []


def test_nothing_to_choose_from_and_few_steps() -> None:
    short = recipe(train={"epochs": 1}, uacr={"enabled": False})
    assert names(short, GOOD[:1]) == ["few-steps", "one-epoch"]
    told = findings.few_steps(short, 40, 40)
    assert told is not None and "train.epochs=10" in told.change
    assert [finding.name for finding in findings.before_start(short, 40)] == ["one-epoch", "few-steps"]


def test_keys_that_change_nothing() -> None:
    frozen = {part: {**section, "freeze": "all"} for part, section in TINY.items()}
    stated = recipe(encoders={**frozen, "prompts": ["{}"]}, optimizer={"layer_decay": 0.5})
    found = findings.before_start(stated, 40)
    assert [finding.name for finding in found] == ["idle-layer-decay", "idle-prompts"]
    assert "optimizer.layer_decay=0.5 changes nothing" in str(found[0])
    trained = recipe(encoders=TINY | {"text": frozen["text"]}, optimizer={"layer_decay": 0.5})
    assert findings.before_start(trained, 40) == []
    dual = recipe(encoders={"both": "clip", "prompts": ["{}"]})
    assert [finding.name for finding in findings.before_start(dual, 40)] == []
