"""The keys of a recipe, frozen. A new key needs a row in docs/results.md that shows its value; there are less than 100."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from datasets_manifest.errors import InputError
from trainers.recipe import Recipe, apply_override, make_recipe, stated_values
from trainers.recipe.data_sections import Lora
from trainers.recipe.from_version_1 import REMOVED, REMOVED_VALUES
from trainers.recipe.overrides import differing

DATA = {"sources": ["a", "b"], "target": "c"}
KEYS = [
    "schema_version",
    "preset",
    "data.sources",
    "data.target",
    "data.splits",
    "data.samples_per_epoch",
    "data.max_bad_fraction",
    "data.pictures.resize",
    "data.pictures.crop",
    "data.pictures.interpolation",
    "data.pictures.mean",
    "data.pictures.std",
    "data.pictures.channels",
    "data.pictures.strong.area",
    "data.pictures.strong.flip",
    "data.pictures.strong.jitter",
    "data.pictures.strong.jitter_p",
    "data.pictures.strong.greyscale",
    "data.pictures.max_pictures",
    "data.texts.cleaning",
    "data.texts.max_tokens",
    "data.texts.word_dropout",
    "encoders.both",
    "encoders.prompts",
    "encoders.text.name",
    "encoders.text.weights",
    "encoders.text.pooling",
    "encoders.text.dropout",
    "encoders.text.freeze",
    "encoders.text.lora",
    "encoders.picture.name",
    "encoders.picture.weights",
    "encoders.picture.freeze",
    "encoders.picture.lora",
    "encoders.picture.batch_norm",
    "encoders.picture.head",
    "encoders.features",
    "encoders.activation_checkpointing",
    "network.modalities",
    "network.modality_dropout",
    "objective.cmcfa",
    "objective.cdcfa",
    "objective.cdafa",
    "objective.mcc",
    "objective.temperature",
    "objective.smoothing",
    "objective.moments",
    "objective.imitation",
    "objective.discriminators",
    "uacr.enabled",
    "uacr.threshold",
    "uacr.warmup",
    "uacr.start",
    "uacr.update",
    "uacr.prior",
    "sam.rho",
    "optimizer.type",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.layer_decay",
    "optimizer.lr.encoders",
    "optimizer.lr.projections",
    "optimizer.lr.fusion",
    "optimizer.lr.heads",
    "optimizer.lr.discriminators_source",
    "optimizer.lr.discriminators_target",
    "schedule.mode",
    "schedule.power",
    "schedule.lowest_lr",
    "schedule.multistep",
    "train.epochs",
    "train.patience",
    "train.start_from",
    "train.batch_size",
    "train.eval_batch_size",
    "train.seed",
    "train.precision",
    "train.accumulate",
    "train.compile",
    "train.target_labels",
    "selection.validator",
    "selection.gate",
    "cluster.workers",
    "cluster.address",
    "cluster.cpus_per_worker",
    "cluster.device",
    "cluster.max_failures",
    "cluster.timeout_s",
    "cluster.grace_s",
    "checkpoint.keep",
    "checkpoint.every_steps",
    "checkpoint.max_disk",
    "tracking.enabled",
    "tracking.uri",
    "tracking.experiment",
    "tracking.register_as",
    "run.name",
    "run.storage",
]


def test_the_keys_are_these() -> None:
    assert sorted(make_recipe({"data": DATA}).flat()) == sorted(KEYS)
    assert len(KEYS) < 100


def test_every_key_says_what_it_means() -> None:
    def undescribed(model: type[BaseModel], path: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            members = typing.get_args(field.annotation) or (field.annotation,)
            sections = [kind for kind in members if inspect.isclass(kind) and issubclass(kind, BaseModel)]
            for section in sections:
                missing += undescribed(section, f"{path}{name}.")
            if field.annotation not in sections and not (field.description or "").endswith("."):
                missing.append(path + name)
        return missing

    assert undescribed(Recipe, "") == []


def test_a_section_that_is_left_out_is_one_key_and_may_be_stated_by_its_parts() -> None:
    """`lora: null`, and what is made of it: overrides, a stored recipe, what a file has to state, the nearest key."""
    plain = make_recipe({"data": DATA})
    tree = plain.model_dump(mode="json")
    apply_override(tree, "encoders.text.lora.rank=4")
    found = make_recipe(tree)
    assert found.encoders.adapters == {"text": Lora(rank=4)}
    assert make_recipe(found.model_dump(mode="json")) == found
    assert make_recipe(stated_values(found)) == found
    assert set(found.flat()) - set(plain.flat()) == {f"encoders.text.lora.{key}" for key in Lora.model_fields}
    assert differing(found.flat(), plain.flat()) == differing(plain.flat(), found.flat())
    assert found.without_adapters() == plain
    with pytest.raises(InputError, match=r"encoders\.text\.lora\.ranks: .*rank"):
        make_recipe({"data": DATA, "encoders": {"text": {"lora": {"ranks": 4}}}})


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"lora": {"rank": 0}}, r"picture\.lora\.rank.*0"),
        ({"lora": {"targets": []}}, r"picture\.lora\.targets"),
        ({"lora": 8}, r"picture\.lora"),
        ({"lora": {}, "freeze": "all"}, r"freeze: `all` leaves no layer for lora"),
        ({"lora": {}, "head": "identity_linear"}, r"head: `identity_linear` .* does not go with lora"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(section: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_recipe({"data": DATA, "encoders": {"picture": section}})


def old(key: str, value: object) -> dict[str, Any]:
    """A recipe of version 1 that names a key."""
    tree: dict[str, Any] = {"schema_version": 1, "data": dict(DATA)}
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return tree


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_is_refused_with_where_it_went(key: str) -> None:
    tree = {name: value for name, value in old(key, 12345).items() if name != "schema_version"}
    with pytest.raises(InputError) as caught:
        make_recipe(tree, "new.yaml")
    assert str(caught.value).startswith(f"new.yaml: {key}: {REMOVED[key].now}; found 12345")


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_at_its_default_is_dropped_from_an_old_recipe(key: str) -> None:
    assert make_recipe(old(key, REMOVED[key].default)) == make_recipe({"data": DATA})


@pytest.mark.parametrize(("key", "value"), [
    *((key, 12345) for key, gone in REMOVED.items() if gone.now.startswith(("moved", "was removed", "is decided"))),
    *REMOVED_VALUES,
    ("discriminators.hidden", 3), ("data.texts.form", "published"),
])  # fmt: skip
def test_an_old_recipe_with_another_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"old\.json: {key}: "):
        make_recipe(old(key, value), "old.json")


@pytest.mark.parametrize(("stated", "now"), [
    ({"data.train_split": "a"}, {"data.splits": ["a", "val"]}),
    ({"data.texts.form": "published", "data.texts.cleaning": "published"}, {"data.texts.cleaning": "published"}),
    ({"data.pictures.strong.jitter.hue": 0.3, "data.pictures.strong.jitter.p": 0.1},
     {"data.pictures.strong.jitter": [0.4, 0.4, 0.4, 0.3], "data.pictures.strong.jitter_p": 0.1}),
    ({"encoders.text.name": "tiny", "encoders.text.hidden": 32, "encoders.text.layers": 0, "encoders.text.dropout": 0.0},
     {"encoders.text.name": "tiny:32x0", "encoders.text.dropout": 0.0}),
    ({"encoders.picture.name": "tiny", "encoders.picture.width": 4}, {"encoders.picture.name": "tiny:4"}),
    ({"encoders.picture.width": 4}, {"encoders.picture.name": "torchvision:resnet50"}),
    ({"encoders.text.activation_checkpointing": True}, {"encoders.activation_checkpointing": "text"}),
    ({"discriminators.pairs": "merged", "discriminators.seen": "features", "discriminators.hidden": 64,
      "discriminators.warmup": 100.0}, {"objective.discriminators": "dann"}),
    ({"discriminators.pairs": "target", "discriminators.seen": "features", "discriminators.hidden": 64,
      "discriminators.warmup": 100.0, "objective.source_weights": "hardest"}, {"objective.discriminators": "mdan"}),
    ({"optimizer.type": "sgd", "optimizer.momentum": 0.5}, {"optimizer.betas": [0.5, 0.999]}),
    ({"optimizer.momentum": 0.5}, {"optimizer.betas": [0.9, 0.999]}),
    ({"schedule.mode": "cosine", "schedule.target_lr": 0.1, "schedule.lowest_lr": 1e-6}, {"schedule.lowest_lr": 0.1}),
    ({"schedule.mode": "cosine", "schedule.lowest_lr": 1e-6}, {"schedule.lowest_lr": 0.0}),
    ({"schedule.target_lr": 0.1}, {"schedule.lowest_lr": 1e-6}),
    ({"train.tf32": True}, {"train.precision": "tf32"}),
])  # fmt: skip
def test_an_old_key_takes_its_new_form(stated: dict[str, Any], now: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for key, value in stated.items():
        tree = merged(tree, old(key, value))
    found = make_recipe(tree).flat()
    assert {key: found[key] for key in now} == now


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(base[key], over[key]) if isinstance(base[key], dict) else over[key] for key in base if key in over
    }
    return base | over | both


def test_a_recipe_that_version_1_wrote_is_todays(request: pytest.FixtureRequest) -> None:
    """All keys stated, as in a checkpoint and in the registry: the demo's recipe and the published preset."""
    folder = Path(__file__).parent
    for name in ("demo", "published"):
        stored = json.loads((folder / f"version_1_{name}.json").read_text())
        made = make_recipe(stored)
        assert made.schema_version == 2
        rebuilt = make_recipe(made.model_dump(mode="json"))
        assert rebuilt == made
        assert made.preset == {"demo": "recommended", "published": "published"}[name]
    assert made.flat() == make_recipe({"preset": "published", "data": DATA}).flat()
