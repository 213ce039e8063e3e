"""Recipes: presets, overrides, and that every fault is an InputError that helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.stream.encode import Vocabulary
from trainers.compute.device_batches import make_encoding
from trainers.recipe import Recipe, load_recipe, make_recipe

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a recipe of the given extra keys with overrides."""

    def loaded(*overrides: str, **keys: object) -> Recipe:
        file = tmp_path / "recipe.yaml"
        tree = {"data": {"sources": ["a/manifest.yaml", "/b/manifest.yaml"], "target": "c.yaml"}} | keys
        file.write_text(yaml.safe_dump(tree))
        return load_recipe(file, list(overrides))

    return loaded


def test_published_is_the_table_of_the_paper(load: Load) -> None:
    flat = load(preset="published").flat()
    wanted = {
        "train.seed": 123456,
        "train.epochs": 10,
        "train.batch_size": 8,
        "optimizer.type": "adam",
        "optimizer.betas": [0.9, 0.999],
        "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 0.0,
        "optimizer.lr.encoders": 2e-5,
        "optimizer.lr.projections": 2e-5,
        "optimizer.lr.fusion": 5e-4,
        "optimizer.lr.heads": 5e-4,
        "optimizer.lr.discriminators_source": 2e-4,
        "optimizer.lr.discriminators_target": 3e-4,
        "schedule.mode": "poly",
        "schedule.power": 0.99,
        "schedule.lowest_lr": 1e-6,
        "objective.cmcfa": 0.5,
        "objective.cdcfa": 0.2,
        "objective.cdafa": 0.05,
        "objective.mcc": 0.05,
        "objective.temperature": 2.0,
        "objective.smoothing": 0.8,
        "sam.rho": 0.05,
        "uacr.enabled": True,
        "uacr.start": 0.3,
        "uacr.update": 0.3,
        "uacr.prior": "uniform",
        "encoders.text.name": "bert-base-uncased",
        "encoders.text.pooling": "pooler",
        "encoders.text.freeze": "none",
        "encoders.picture.name": "torchvision:resnet50",
        "encoders.picture.batch_norm": "per_sample",
        "encoders.picture.head": "identity_linear",
        "data.texts.max_tokens": 200,
        "data.texts.cleaning": "published",
        "data.texts.word_dropout": 0.1,
        "data.pictures.resize": 256,
        "data.pictures.crop": 224,
        "data.pictures.max_pictures": 10,
    }
    assert {key: flat[key] for key in wanted} == wanted


def test_recommended_is_the_default(load: Load) -> None:
    recipe = load()
    assert recipe == load(preset="recommended")
    assert recipe.preset == "recommended"
    assert (recipe.data.texts.cleaning, recipe.encoders.text.pooling) == ("proper", "mean")
    published = load(preset="published")
    assert (recipe.uacr.warmup, recipe.uacr.update, recipe.uacr.threshold) == (None, None, 0.8)
    assert (published.uacr.warmup, published.uacr.update, published.uacr.threshold) == (1, 0.3, 0.0)


def test_no_option_beside_the_method_is_on_in_published(load: Load) -> None:
    """Every option is at the value with which the published method is computed."""
    recipe = load(preset="published")
    assert recipe.uacr.model_dump() == {
        "enabled": True,
        "threshold": 0.0,
        "warmup": 1,
        "start": 0.3,
        "update": 0.3,
        "prior": "uniform",
    }
    assert recipe.network.model_dump() == {"modalities": "both", "modality_dropout": None}
    objective = recipe.objective
    assert (objective.moments, objective.imitation, objective.discriminators) == (0.0, 0.0, "m2can")
    assert recipe.data.texts.form == "published"
    assert recipe.train.target_labels == "unused"


def test_a_file_states_only_what_differs_from_its_preset(load: Load) -> None:
    recipe = load(preset="published", encoders={"text": {"freeze": 3}}, uacr={"start": 0.1})
    assert (recipe.encoders.text.pooling, recipe.encoders.text.freeze) == ("pooler", 3)
    assert (recipe.uacr.start, recipe.uacr.update) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("optimizer.lr.heads=1e-4", "optimizer.lr.heads", 1e-4),
        ("sam.rho=0", "sam.rho", 0.0),
        ("uacr.enabled=false", "uacr.enabled", False),
        ("uacr.enabled=off", "uacr.enabled", False),
        ("uacr.prior=[0.2, 3e-1, 0.5]", "uacr.prior", [0.2, 0.3, 0.5]),
        ("optimizer.betas=[0.8, 0.99]", "optimizer.betas", [0.8, 0.99]),
        ("schedule.multistep=[2, 5]", "schedule.multistep", [2, 5]),
        ("encoders.text.freeze=2", "encoders.text.freeze", 2),
        ("encoders.text.freeze=all", "encoders.text.freeze", "all"),
        ("data.samples_per_epoch=null", "data.samples_per_epoch", None),
        ("encoders.picture.name=torchvision:resnet18", "encoders.picture.name", "torchvision:resnet18"),
        ("tracking.uri=http://host:5000?a=b", "tracking.uri", "http://host:5000?a=b"),
        ("run.name=12e5", "run.name", "12e5"),
        ("preset=published", "encoders.text.pooling", "pooler"),
        (" train.seed =7", "train.seed", 7),
    ],
)
def test_override(load: Load, override: str, key: str, value: object) -> None:
    found = load(override).flat()[key]
    assert found == value
    assert type(found) is type(value)


def test_overrides_win_over_the_file_and_the_last_one_over_the_first(load: Load) -> None:
    recipe = load("train.epochs=4", "train.epochs=5", "train.seed=1", train={"epochs": 2, "batch_size": 6})
    assert (recipe.train.epochs, recipe.train.seed, recipe.train.batch_size) == (5, 1, 6)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", ["train.epoch", "`train.epochs`"]),
        ("optimiser.lr.heads=1", ["optimiser", "`optimizer`"]),
        ("encoders.picture.batchnorm=frozen", ["encoders.picture.batchnorm", "`encoders.picture.batch_norm`"]),
        ("data.texts.max_token=9", ["data.texts.max_token", "`data.texts.max_tokens`"]),
        ("train..epochs=3", ["train.", "unknown key"]),
        ("train.epochs=many", ["train.epochs", "'many'", "integer"]),
        ("train.epochs=2.5", ["train.epochs", "2.5", "integer"]),
        ("train.epochs=0", ["train.epochs", "found 0", "greater than or equal to 1"]),
        ("train.epochs=yes", ["train.epochs", "found True", "boolean"]),
        ("objective.mcc=-1", ["objective.mcc", "-1"]),
        ("objective.mcc=.nan", ["objective.mcc", "nan"]),
        ("optimizer.lr.heads=1e999", ["optimizer.lr.heads"]),
        ("uacr.start=1.5", ["uacr.start", "1.5"]),
        ("uacr.prior=[0.5, -1]", ["uacr.prior", "-1"]),
        ("encoders.text.name=tiny:999", ["encoders.text.name", "tiny:999", "a multiple of 32"]),
        ("encoders.picture.batch_norm=freeze", ["encoders.picture.batch_norm", "'freeze'", "'frozen'"]),
        ("encoders.text.freeze=0", ["encoders.text.freeze", "found 0"]),
        ("encoders.text.freeze=some", ["encoders.text.freeze", "'some'"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas"]),
        ("optimizer=adam", ["optimizer", "'adam'", "mapping"]),
        ("train.epochs.more=1", ["--set train.epochs", "no keys below it", "wanted train.epochs=…"]),
        ("data.sources=x", ["data.sources", "'x'", "list"]),
        ("data.sources=[]", ["data.sources", "at least 1"]),
        ("run.name=../up", ["run.name", "'../up'"]),
        ("schema_version=3", ["schema_version", "3"]),
        ("train.epochs", ["--set", "a.b=c", "for example train.epochs=5"]),
        ("=3", ["--set", "a.b=c"]),
        ("train.epochs=[1", ["--set train.epochs", "YAML"]),
        ("preset=publisht", ["preset", "'publisht'", "nearest: published"]),
        ("preset=[1]", ["preset", "[1]"]),
        ("cluster.workers=9", ["cluster.workers 9", "train.batch_size 8"]),
    ],
)
def test_refused(load: Load, override: str, says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(override, train={"epochs": 2})
    for word in says:
        assert word in str(caught.value)


def test_a_fault_in_the_file_names_the_file(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: sam\.roh: unknown key `roh`.*`sam\.rho`"):
        load(sam={"roh": 0.1})
    with pytest.raises(InputError, match="data: is missing"):
        make_recipe({})
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"a: [", b"\xff\xfe\x00", b"a: &x [*x, !!python/object:os.system ls]"]
)
def test_not_a_recipe(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"r\.yaml"):
        load_recipe(file)


def test_as_many_workers_as_rows_are_enough(load: Load) -> None:
    assert load("cluster.workers=8").cluster.workers == 8


def test_manifest_paths_are_relative_to_the_recipe(load: Load, tmp_path: Path) -> None:
    data = load("data.target=s3://bucket/m.yaml").data
    assert data.sources == [str(tmp_path / "a/manifest.yaml"), "/b/manifest.yaml"]
    assert data.target == "s3://bucket/m.yaml"
    assert make_recipe({"data": {"sources": ["x"], "target": "y"}}).data.target == "y"


def test_encoders_in_folders_are_found_beside_the_recipe_by_every_process(load: Load, tmp_path: Path) -> None:
    for name in ("clip", "tiny", "pretrained"):
        (tmp_path / name).mkdir()
    encoders = load(encoders={"both": "hf:clip"}).encoders
    place = str(tmp_path / "clip")
    assert (encoders.both, encoders.text.name, encoders.picture.name) == (place, place, f"hf:{place}")
    assert encoders.text.weights == "pretrained"
    assert load(encoders={"text": {"name": "tiny"}}).encoders.text.name == "tiny"
    assert load(encoders={"both": "openai/clip"}).encoders.text.name == "openai/clip"


def test_flat_goes_back_to_the_same_recipe(load: Load, tmp_path: Path) -> None:
    recipe = load("uacr.prior=[0.5, 0.5]", "encoders.text.freeze=all", preset="published")
    flat = recipe.flat()
    assert flat["data.sources"] == recipe.data.sources
    assert not any(isinstance(value, dict) for value in flat.values())
    overrides = [f"{key}={json.dumps(value)}" for key, value in flat.items()]  # JSON is YAML
    file = tmp_path / "empty.yaml"
    file.write_text("{}")
    assert load_recipe(file, overrides) == recipe


@pytest.mark.parametrize("off", ["cmcfa", "cdcfa", "cdafa", "mcc"])
def test_target_takes_part_unless_all_is_off(load: Load, off: str) -> None:
    nothing = [f"objective.{name}=0" for name in ("cmcfa", "cdcfa", "cdafa", "mcc")] + ["uacr.enabled=false"]
    assert not load(*nothing).target_takes_part
    assert load(*nothing, f"objective.{off}=0.1").target_takes_part
    assert load(*nothing, "uacr.enabled=true").target_takes_part


@pytest.mark.parametrize(("preset", "wanted"), [("published", "dropped"), ("recommended", "white")])
def test_transparent_pictures_are_read_as_the_preset_says(load: Load, preset: str, wanted: str) -> None:
    recipe = load(preset=preset)
    assert recipe.picture_views() == recipe.data.pictures.views().model_copy(update={"transparency": wanted})
    vocabulary = Vocabulary("", "[CLS]", "[SEP]", "[PAD]", 0, 5)
    assert make_encoding(recipe, vocabulary).pictures.transparency == wanted


def test_encoders_in_words(load: Load) -> None:
    recipe = load(
        encoders={
            "text": {"name": "models/bert", "freeze": "all"},
            "picture": {"name": "tiny", "freeze": 2, "lora": {"rank": 4}},
        }
    )
    found = recipe.encoders.described()
    assert found.endswith("bert (frozen), picture tiny (LoRA of rank 4 after 2 blocks)")
