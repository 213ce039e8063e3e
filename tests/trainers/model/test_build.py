"""Optimizers, objective and schedule of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from datasets_manifest.errors import InputError
from trainers.encoders.encoders import text_config
from trainers.model.build import build_discriminators, build_network, build_objective
from trainers.model.optimizers import build_optimizers, build_schedule
from trainers.recipe import make_recipe
from trainers.recipe.method_sections import ScheduleSection
from trainers.recipe.training_rule import decide


@pytest.fixture
def recipe() -> Any:
    def made(sources: int = 2, **keys: Any) -> Any:
        encoders = {"text": {"name": "tiny:32"}, "picture": {"name": "tiny:4"}}
        tree = {"data": {"sources": ["s"] * sources, "target": "t"}, "encoders": encoders} | keys
        return decide(make_recipe(tree), rows=100)[0]

    return made


@pytest.mark.parametrize("sources", [1, 2, 3])
def test_every_part_has_its_rate(recipe: Any, sources: int) -> None:
    rates = dict.fromkeys(
        ("encoders", "projections", "fusion", "heads", "discriminators_source", "discriminators_target")
    )
    rates = {name: 0.1 * (i + 1) for i, name in enumerate(rates)}
    made = recipe(sources, optimizer={"lr": rates})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    optimizer, adversary = build_optimizers(network, build_discriminators(sources, 3), made.optimizer)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == {
        "text_encoder": rates["encoders"],
        "picture_encoder": rates["encoders"],
        "text_projection": rates["projections"],
        "picture_projection": rates["projections"],
        "fusion": rates["fusion"],
        **{f"head_{i}": rates["heads"] for i in range(sources)},
        "picture_head": rates["heads"],
        "text_head": rates["heads"],
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))
    wanted = {
        f"discriminator_{a}_{b}": rates["discriminators_target" if b == sources else "discriminators_source"]
        for a in range(sources + 1)
        for b in range(a + 1, sources + 1)
    }
    assert {group["name"]: group["base_lr"] for group in adversary.param_groups} == wanted


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adadelta"])
def test_optimizers_by_name(recipe: Any, kind: str) -> None:
    made = recipe(optimizer={"type": kind, "weight_decay": 0.01, "betas": [0.8, 0.9]})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    for optimizer in build_optimizers(network, build_discriminators(2, 3), made.optimizer):
        assert type(optimizer).__name__.lower() == kind
        assert optimizer.defaults["weight_decay"] == 0.01
        assert optimizer.defaults.get("momentum", 0.8) == 0.8
        assert optimizer.defaults.get("betas", (0.8, 0.9)) == (0.8, 0.9)


def test_a_frozen_encoder_is_in_no_group(recipe: Any) -> None:
    made = recipe(encoders={"text": {"name": "tiny", "freeze": "all"}, "picture": {"name": "tiny", "freeze": "all"}})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    optimizer, _ = build_optimizers(network, build_discriminators(2, 3), made.optimizer)
    assert not any("encoder" in group["name"] for group in optimizer.param_groups)


def test_rates_fall_towards_the_input(recipe: Any) -> None:
    made = recipe(
        encoders={"text": {"name": "tiny:32x2", "pooling": "pooler"}, "picture": {"name": "tiny:4", "freeze": 3}},
        optimizer={"layer_decay": 0.5, "lr": {"encoders": 0.8}},
    )
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    optimizer, _ = build_optimizers(network, build_discriminators(2, 3), made.optimizer)
    groups = {group["name"]: group for group in optimizer.param_groups if "encoder" in group["name"]}
    assert {name: group["base_lr"] for name, group in groups.items()} == pytest.approx({
        "text_encoder.0": 0.2, "text_encoder.1": 0.4, "text_encoder.2": 0.8, "text_encoder": 0.8,
        "picture_encoder.3": 0.4, "picture_encoder.4": 0.8,
    })  # fmt: skip
    bert = network.text_encoder.model
    parts = [bert.embeddings, *bert.encoder.layer, bert.pooler]
    for name, part in zip(("text_encoder.0", "text_encoder.1", "text_encoder.2", "text_encoder"), parts, strict=True):
        assert {id(p) for p in groups[name]["params"]} == {id(p) for p in part.parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    assert sorted(id(p) for g in optimizer.param_groups for p in g["params"]) == sorted(map(id, trained))


def test_rates_cannot_fall_without_blocks(recipe: Any) -> None:
    made = recipe(optimizer={"layer_decay": 0.5})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    network.picture_encoder.model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)})
    with pytest.raises(InputError, match=r"optimizer\.layer_decay: the blocks of a ModuleDict are not known here"):
        build_optimizers(network, build_discriminators(2, 3), made.optimizer)


def test_the_objective_has_the_recipes_weights(recipe: Any) -> None:
    weights = {"cmcfa": 1.0, "cdcfa": 2.0, "cdafa": 3.0, "mcc": 4.0, "moments": 0.5, "imitation": 0.7}
    settings = {"temperature": 5.0, "smoothing": 0.6, "discriminators": "mdan"}
    objective = build_objective(recipe(3, objective=weights | settings))
    assert objective.num_sources == 3
    assert objective.weights == weights
    assert {name: getattr(objective, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"mode": "poly", "power": 2.0, "lowest_lr": 0.1}, [1.0, (1 - 0.1) ** 2, 0.25, 0.1]),
        ({"mode": "cosine", "lowest_lr": 0.2}, [1.0, None, 0.6, 0.2]),
        ({"mode": "multistep", "multistep": [1]}, [1.0, 1.0, 0.1, 0.1]),
        ({"mode": "constant"}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedule_in_epochs(keys: dict[str, Any], wanted: list[float | None]) -> None:
    """Two epochs of ten steps, seen after steps 0, 2, 10 and 20."""
    schedule = build_schedule(ScheduleSection(**keys), 2, 10)
    for k, value in zip((0, 2, 10, 20), wanted, strict=True):
        assert value is None or schedule(1.0, k) == pytest.approx(value)
