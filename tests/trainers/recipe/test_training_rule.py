"""What a recipe leaves to the rule: rates, epochs and pseudo labels by what is trained and how many steps there are."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.recipe import Recipe, make_recipe
from trainers.recipe.training_rule import (
    LEAST_EPOCHS,
    LEAST_STEPS,
    MOST_EPOCHS,
    RATES,
    Trained,
    decide,
    left_to_the_rule,
    what_is_trained,
)

TINY = {"text": {"name": "tiny"}, "picture": {"name": "tiny"}}
FROZEN = {"text": {"freeze": "all"}, "picture": {"freeze": "all"}}


def recipe(**keys: Any) -> Recipe:
    return make_recipe({"data": {"sources": ["a", "b"], "target": "c"}} | keys)


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"encoders": TINY}, "random encoders"),
        ({"encoders": {"text": {"weights": "random"}, "picture": {"weights": "random"}}}, "random encoders"),
        ({"encoders": FROZEN}, "heads on frozen encoders"),
        ({"encoders": {"text": {"freeze": "all"}, "picture": {"name": "tiny"}}}, "random encoders"),
        ({"encoders": {"text": {"freeze": 3}, "picture": {"freeze": "all"}}}, "pretrained encoders"),
        ({"encoders": {"picture": {"name": "tiny"}}}, "pretrained encoders"),
        ({"encoders": {"picture": {"name": "tiny"}}, "network": {"modalities": "pictures"}}, "random encoders"),
        ({}, "pretrained encoders"),
        ({"encoders": {"text": {"lora": {}}, "picture": {"lora": {}}}}, "adapters of encoders"),
        ({"encoders": {"text": {"lora": {}}, "picture": {"freeze": "all"}}}, "adapters of encoders"),
        ({"encoders": {"text": {"lora": {}}, "picture": {"name": "tiny"}}}, "adapters of encoders"),
        ({"encoders": {"text": {"lora": {}}}}, "pretrained encoders"),
    ],
)
def test_what_is_trained_decides_the_rates(keys: dict[str, Any], trained: Trained) -> None:
    assert what_is_trained(recipe(**keys)) == trained
    found, _ = decide(recipe(**keys), 100)
    assert found.optimizer.lr.model_dump() == RATES[trained]


@pytest.mark.parametrize(("rows", "batch"), [(60, 16), (200, 16), (600, 8), (100_000, 8), (4, 8)])
def test_few_records_have_more_epochs_and_never_less_than_ten(rows: int, batch: int) -> None:
    found, _ = decide(recipe(encoders=FROZEN, train={"batch_size": batch}), rows)
    epochs, steps = found.train.epochs, -(-rows // batch)
    assert epochs is not None and LEAST_EPOCHS <= epochs <= MOST_EPOCHS
    least = LEAST_STEPS["heads on frozen encoders"]
    assert epochs * steps >= min(least, MOST_EPOCHS * steps)
    assert epochs == LEAST_EPOCHS or (epochs - 1) * steps < least


def test_pseudo_labels_begin_after_three_tenths_and_ten_epochs_are_those_of_before() -> None:
    found, _ = decide(recipe(), 100_000)
    assert (found.train.epochs, found.uacr.warmup, found.uacr.update) == (10, 3, 0.1)
    short, _ = decide(recipe(train={"epochs": 2}), 100)
    assert (short.uacr.warmup, short.uacr.update) == (1, 0.7)
    long, _ = decide(recipe(encoders=TINY, train={"batch_size": 16}), 60)
    assert long.train.epochs is not None and long.uacr.warmup is not None and long.uacr.update is not None
    assert long.uacr.warmup < long.train.epochs
    last_rate = long.uacr.start + long.uacr.update * (long.train.epochs - 1 - long.uacr.warmup)
    assert 0.9 < last_rate <= 1


def test_on_frozen_encoders_with_known_shares_pseudo_labels_begin_with_the_floor() -> None:
    shares, ten = {"prior": [2, 1]}, {"epochs": 10}
    found, _ = decide(recipe(encoders=FROZEN, train=ten, uacr=shares), 100)
    assert (found.uacr.warmup, found.uacr.update) == (0, 0.1)
    assert decide(recipe(encoders=FROZEN, train=ten), 100)[0].uacr.warmup == 0  # they are estimated
    for encoders, uacr in ((FROZEN, {"prior": "uniform"}), (TINY, shares), (TINY, {})):
        assert decide(recipe(encoders=encoders, train=ten, uacr=uacr), 100)[0].uacr.warmup == 3
    stated, _ = decide(recipe(encoders=FROZEN, train=ten, uacr=shares | {"warmup": 2}), 100)
    assert (stated.uacr.warmup, stated.uacr.update) == (2, 0.0875)
    before, _ = decide(recipe(encoders=FROZEN, train=ten, uacr=shares), 100, before=stated)  # a run that goes on
    assert before.uacr.warmup == 2


def test_what_is_stated_wins_and_the_note_names_what_was_chosen() -> None:
    given = recipe(encoders=TINY, optimizer={"lr": {"heads": 3e-4}}, train={"epochs": 7}, uacr={"warmup": 5})
    found, notes = decide(given, 60)
    assert (found.optimizer.lr.heads, found.train.epochs, found.uacr.warmup) == (3e-4, 7, 5)
    assert found.optimizer.lr.encoders == RATES["random encoders"]["encoders"]
    assert len(notes) == 1 and "random encoders" in notes[0] and "8 steps an epoch" in notes[0]
    assert "optimizer.lr.encoders=0.002" in notes[0] and "heads=" not in notes[0] and "train.epochs" not in notes[0]
    assert decide(found, 60) == (found, []) and left_to_the_rule(found) == []


def test_published_leaves_nothing_to_the_rule() -> None:
    published = recipe(preset="published")
    assert left_to_the_rule(published) == [] and decide(published, 5) == (published, [])


def test_a_run_that_goes_on_keeps_its_values() -> None:
    """Also if its data have grown, or another version had another rule."""
    before, _ = decide(recipe(encoders=TINY, train={"epochs": 33}, optimizer={"lr": {"fusion": 0.5}}), 60)
    found, _ = decide(recipe(encoders=TINY), 6000, before)
    assert found == before
