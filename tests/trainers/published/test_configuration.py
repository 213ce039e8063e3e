"""Configurations of the published form, written here as its documentation says, against our recipes of the same runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.catalog import parse_reference
from trainers.recipe import Recipe, load_recipe
from trainers.recipe.recipes import packaged_recipe

AESTHETICS, SENTIMENT = ["AVA", "PCCD", "RPCD"], ["TumEmo", "Twitter", "Yelp"]


def published(target: str) -> dict[str, Any]:
    """The configuration of a target, with what differs from the form's defaults."""
    aesthetic = target in AESTHETICS
    sources = [name for name in (AESTHETICS if aesthetic else SENTIMENT) if name != target]
    content: dict[str, Any] = {
        "dataset": {"types": [*sources, target]},
        "net": {"num_classes": 2 if aesthetic else 3, "start_rate": 0.3, "update_rate": 0.3, "ema_decay": 0.99},
    }
    if target in ("PCCD", "TumEmo", "Twitter", "Yelp"):
        content["criterion"] = {"cross_modal_contrastive_loss_rate": 1}
    if target == "Yelp":
        content["dataset"]["batch_size"] = 4
    if not aesthetic:
        rates = {"backbone": "2e-6", "extractor": "2e-6", "mlb": "5e-5", "classifier": "5e-5"}
        rates |= {"mmdiscriminator1": "2e-5", "mmdiscriminator2": "3e-5"}
        content["trainer"] = {
            "lr_scheduler": {"mode": "poly", "kwargs": {"power": 0.9, "lowest_lr": "1e-8"}},
            "optimizer": {f"{name}_lr": rate for name, rate in rates.items()},
        }
    return content


def load(folder: Path, content: dict[str, Any], overrides: list[str] | None = None) -> Recipe:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_recipe(file, overrides)


@pytest.mark.parametrize("target", [*AESTHETICS, *SENTIMENT])
def test_our_recipe_says_the_same_as_the_published_configuration(tmp_path: Path, target: str) -> None:
    ours = packaged_recipe(target)
    assert ours is not None
    assert load(tmp_path, published(target)) == load_recipe(ours)


def test_every_key_of_the_form_reaches_the_recipe(tmp_path: Path) -> None:
    content = {
        "dataset": {
            "types": ["PCCD", "RPCD", "AVA"],
            "batch_size": 6,
            "bert_model": "/models/bert",
            "workers": 3,
            "train": {
                "AVA": {"data_list": "/l/a.json", "data_root": "/p/ava", "n_sample": 50},
                "PCCD": {"n_sample": 50},
                "RPCD": {"n_sample": 50},
                "text_encode": {"max_length": 64},
                "transforms_weak": {"resize": 128, "center_crop": 112, "mean": [0.485, 0.456, 0.406]},
                "transforms_strong": {
                    "rand_resize_crop": 112,
                    "rand_flip": 0.1,
                    "rand_gray_scale": 0.3,
                    "rand_apply": {"p": 0.7, "color_jitter": {"brightness": 0.1, "hue": 0.2}},
                },
            },
            "val": {"AVA": {"data_list": "/l/v.json", "n_sample": 847}},
        },
        "net": {"num_classes": 2, "start_rate": 0.2, "update_rate": 0.1},
        "criterion": {
            "cross_modal_contrastive_loss_rate": 0.1,
            "cross_domain_contrastive_loss_rate": 0.2,
            "mm_D_loss_rate": 0.3,
        },
        "trainer": {
            "epochs": 4,
            "eval_on": True,
            "eval_mode": {"epoch": 1},
            "log_iter": 10,
            "lr_scheduler": {"mode": "cosine", "kwargs": {"targetlr": "1e-7"}},
            "optimizer": {"type": "SGD", "kwargs": {"betas": "0.8 0.99", "eps": "1e-7", "lr": 0.1}, "mlb_lr": "1e-3"},
        },
        "hyper_para": {"rho": 0.01, "eps": 0.9, "temperature": 3.0},
        "seed": 7,
        "snapshot_dir": "out",
    }
    recipe = load(tmp_path, content, ["train.epochs=2"])
    data, pictures = recipe.data, recipe.data.pictures
    assert recipe.preset == "published"
    assert data.sources == ["catalog:PCCD", "catalog:RPCD"]
    assert parse_reference(data.target).locations == {"root": "/p/ava", "train": "/l/a.json", "val": "/l/v.json"}
    assert (data.samples_per_epoch, data.texts.max_tokens, recipe.train.batch_size) == (50, 64, 6)
    assert (pictures.resize, pictures.crop, pictures.strong.flip, pictures.strong.greyscale) == (128, 112, 0.1, 0.3)
    strong = pictures.strong
    assert (strong.jitter_p, strong.jitter) == (0.7, (0.1, 0.4, 0.4, 0.2))
    assert (recipe.uacr.start, recipe.uacr.update) == (0.2, 0.1)
    o = recipe.objective
    assert (o.cmcfa, o.cdcfa, o.cdafa, o.mcc, o.temperature, o.smoothing) == (0.1, 0.2, 0.3, 0.3, 3.0, 0.9)
    assert (recipe.train.epochs, recipe.train.seed, recipe.sam.rho, recipe.run.storage) == (2, 7, 0.01, "out")
    assert (recipe.schedule.mode, recipe.schedule.lowest_lr) == ("cosine", 1e-7)
    assert (recipe.optimizer.type, recipe.optimizer.betas, recipe.optimizer.eps) == ("sgd", (0.9, 0.99), 1e-7)
    assert (recipe.optimizer.lr.fusion, recipe.optimizer.lr.heads) == (1e-3, 5e-4)
    assert recipe.encoders.text.name == "/models/bert"


@pytest.mark.parametrize(
    ("path", "value", "field", "says"),
    [
        ("net.start_rat", 0.3, "net.start_rat", "`net.start_rate`"),
        ("trainer.optimizer.backbon_lr", 1, "trainer.optimizer.backbon_lr", "`trainer.optimizer.backbone_lr`"),
        ("dataset.train", {"AWA": {}}, "dataset.train.AWA", "`dataset.train.AVA`"),
        ("dataset.types", ["PCCD", "RPCD", "AVAA"], "dataset.types", "(nearest: AVA)"),
        ("dataset.types", ["PCCD", "postcards", "AVA"], "dataset.types", "not a published data set"),
        ("dataset.types", ["Yelp", "RPCD", "AVA"], "net.num_classes", "does not fit"),
        ("net.num_classes", 5, "net.num_classes", "found 5"),
        ("trainer.eval_on", False, "trainer.eval_on", "True"),
        ("trainer.epochs", 0, "train.epochs", "greater than or equal to 1"),
        ("trainer.optimizer", {"kwargs": {"betas": "0.9"}}, "trainer.optimizer.kwargs.betas", "0.9 0.999"),
        ("dataset.train", {"AVA": {"n_sample": 5}}, "dataset.train.*.n_sample", "one number"),
        ("dataset.val", {"AVA": {"n_sample": 5}}, "dataset.val.AVA.n_sample", "847"),
        ("dataset.train", {"transforms_weak": {"mean": [0, 0, 0]}}, "dataset.train.transforms_weak.mean", "0.485"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, path: str, value: Any, field: str, says: str) -> None:
    content = published("AVA")
    *parents, last = path.split(".")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    with pytest.raises(InputError) as caught:
        load(tmp_path, content)
    assert caught.value.field == field
    assert says in str(caught.value)
