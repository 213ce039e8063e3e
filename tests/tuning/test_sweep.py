"""Sweep files: what they mean, and how they are refused."""

from __future__ import annotations

import pytest

from datasets_manifest.errors import InputError
from tests.tuning.sweeps import plan_of, write_sweep
from trainers.recipe import make_recipe, read_tree
from tuning.sweep import as_override, load_sweep, packaged_sweep

SPACE = {"space": {"uacr.start": {"low": 0.1, "high": 0.6}}}


@pytest.mark.parametrize("value", [2e-5, 1e16, 3, True, "uniform", [0.2, 0.8], None, "1e-3", "a: b"])
def test_override_reads_back_as_the_value(value):
    key, _, written = as_override("a.b", value).partition("=")
    import yaml

    assert key == "a.b" and yaml.safe_load(written) == value and type(yaml.safe_load(written)) is type(value)


def test_trial_changes_the_recipe_and_nothing_else(tmp_path):
    plan = plan_of(tmp_path, {**SPACE, "set": ["train.epochs=3"], "objective": "snd"})
    recipe = plan.recipe(plan.trial_overrides({"uacr.start": 0.25}))
    before = make_recipe(read_tree(tmp_path / "recipe.yaml", []), tmp_path / "recipe.yaml").flat()
    changed = {key: value for key, value in recipe.flat().items() if before[key] != value}
    assert changed == {"uacr.start": 0.25, "train.epochs": 3, "selection.validator": "snd"}
    assert plan.recipe([]).uacr.start == before["uacr.start"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["either a `space`"]),
        ({**SPACE, "variants": {"a": []}, "seeds": [0]}, ["either a `space`"]),
        ({"variants": {"a": []}}, ["`variants` and `seeds`"]),
        ({"space": {"uacr.strat": {"choices": [1]}}}, ["space.uacr.strat", "uacr.start"]),
        ({"space": {"uacr.start": {"low": 0.1, "high": 1.5}}}, ["space.uacr.start", "1.5", "1"]),
        ({"space": {"uacr.start": {"low": 0.6, "high": 0.1}}}, ["not below"]),
        ({"space": {"sam.rho": {"low": 0.0, "high": 0.1, "log": True}}}, ["above 0"]),
        ({"space": {"uacr.warmup": {"low": 1, "high": 2.5, "integer": True}}}, ["whole numbers"]),
        ({"space": {"run.name": {"choices": ["a"]}}}, ["space.run.name", "not for a search"]),
        ({"space": {"encoders.text.lora.ranks": {"choices": [4]}}}, ["space.encoders.text.lora.ranks", "rank"]),
        ({**SPACE, "algorithm": "grid"}, ["a grid needs"]),
        ({**SPACE, "algorithm": "bohb"}, ["algorithm", "bohb"]),
        ({**SPACE, "trails": 3}, ["trails", "trials"]),
        ({**SPACE, "objective": "leave_one_source_out", "asha": {}}, ["asha"]),
        ({"variants": {"one": ["objective.mccc=1"]}, "seeds": [0]}, ["variants.one", "mcc"]),
    ],
)
def test_refuses_with_field_and_value(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, content)
    for word in words:
        assert word in str(caught.value)


def test_keys_of_a_section_that_the_recipe_leaves_out_are_searched(tmp_path):
    plan = plan_of(tmp_path, {"space": {"encoders.text.lora.rank": {"choices": [4, 8]}}})
    lora = plan.recipe(plan.trial_overrides({"encoders.text.lora.rank": 4})).encoders.text.lora
    assert lora is not None and lora.rank == 4
    assert plan.recipe([]).encoders.text.lora is None


def test_recipe_is_wanted(tmp_path):
    file = write_sweep(tmp_path, SPACE)
    file.write_text(file.read_text().replace("recipe: recipe.yaml\n", ""))
    with pytest.raises(InputError, match="--recipe"):
        load_sweep(file)
    assert load_sweep(file, tmp_path / "recipe.yaml").sweep.name == "trial"


def test_packaged_sweeps_fit_a_recipe(tmp_path):
    write_sweep(tmp_path, SPACE)
    plan = load_sweep(packaged_sweep("ablation"), tmp_path / "recipe.yaml")
    alone = plan.recipe(plan.sweep.variants["MCC alone"])
    assert alone.objective.mcc > 0 and alone.objective.cmcfa == alone.objective.cdcfa == alone.objective.cdafa == 0
    assert not alone.uacr.enabled
    baselines = load_sweep(packaged_sweep("baselines"), tmp_path / "recipe.yaml")  # every variant fits, or this raises
    published = baselines.recipe(baselines.sweep.variants["M2CAN published"])
    assert published.uacr == published.uacr.__class__() and published.objective == published.objective.__class__()
    recommended = baselines.recipe(baselines.sweep.variants["M2CAN recommended"])
    assert recommended.uacr == make_recipe({"data": {"sources": ["a"], "target": "b"}}).uacr
