"""What a recipe has to state beside its preset."""

from __future__ import annotations

import pytest

from trainers.recipe import make_recipe, stated_values

DATA = {"sources": ["/d/a.yaml", "/d/b.yaml"], "target": "/d/c.yaml"}


@pytest.mark.parametrize("preset", ["recommended", "published"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"epochs": 7}, "uacr": {"prior": [0.2, 0.8]}},
        {"schedule": {"mode": "cosine", "lowest_lr": 1e-6}},
        {"schedule": {"mode": "cosine"}, "optimizer": {"lr": {"encoders": 1e-4}}},
        {"cluster": {"workers": [1, 4]}, "data": {**DATA, "pictures": {"strong": {"area": [0.5, 1.0]}}}},
    ],
)
def test_what_is_stated_gives_the_recipe(preset: str, changes: dict[str, object]) -> None:
    recipe = make_recipe({"preset": preset, "data": DATA, **changes})
    stated = stated_values(recipe)
    assert make_recipe(stated) == recipe
    assert set(stated) == {"schema_version", "preset", "data", *changes}


def test_a_dual_encoder_is_named_once() -> None:
    """So that another one may be put in its place."""
    recipe = make_recipe({"data": DATA, "encoders": {"both": "models/clip", "text": {"freeze": "all"}}})
    stated = stated_values(recipe)
    assert stated["encoders"] == {"both": "models/clip", "text": {"freeze": "all"}}
    assert make_recipe(stated) == recipe
