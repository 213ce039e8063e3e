"""What a step does on a GPU, as far as it can be seen without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.step_parts import Size, make_labels, make_network, make_rows, recipe_of, step_of
from datasets_manifest.stream.encode import HostBatch
from datasets_manifest.stream.source import FeatureBatch
from tests.trainers.absent_gpu import GPU, gradients_from_nowhere, move_there, moved_there, pretend_there_is_one
from trainers.compute.device_batches import to_batch
from trainers.compute.precision import autocast_of, choose_layout, picture_form
from trainers.m2can.collective import Collective
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.network import M2CAN
from trainers.model import build
from trainers.recipe import Recipe
from trainers.step.step import Step

SIZE = Size("torchvision:resnet18", 64, 64, 2, 500, 4, 40)


def step_there(recipe: Recipe, network: M2CAN) -> Step:
    """A step as a worker on a GPU makes it."""
    made = build.build_discriminators(SIZE.sources, SIZE.classes, recipe.objective.discriminators)
    choose_layout(network, recipe, GPU)
    move_there(network)
    move_there(made)
    return step_of(network, made, recipe, GPU, collective=Collective())


def run(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, network: M2CAN, host: HostBatch | FeatureBatch) -> None:
    """Two steps, and a prediction."""
    pretend_there_is_one(monkeypatch)
    form = picture_form(recipe, GPU)
    batch = to_batch(host, make_labels(SIZE), device=torch.device("cpu"), dtype=torch.float32, pictures=form)
    batch, step = moved_there(batch), step_there(recipe, network)
    with gradients_from_nowhere(monkeypatch, network, step.discriminators):
        for _ in range(2):
            passes = step(batch)
        with autocast_of(recipe, GPU)():
            logits_DBC = network.eval()(batch).fused_logits_DBC
    assert step.number == 2
    assert passes["second"]["total"].device == logits_DBC.device == GPU


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("recommended", []),
        ("recommended", ["train.precision=fp32"]),
        ("recommended", ["train.precision=tf32"]),
        ("recommended", ["encoders.picture.batch_norm=frozen"]),
        ("recommended", ["encoders.picture.batch_norm=per_sample"]),
        ("recommended", ["network.modality_dropout=0.3"]),
        ("recommended", ["objective.discriminators=mdan", "objective.moments=1", "objective.imitation=1"]),
        ("published", ["train.precision=bf16"]),
    ],
)
def test_encoders_that_train(monkeypatch: pytest.MonkeyPatch, preset: str, overrides: list[str]) -> None:
    recipe = recipe_of(SIZE, preset, *overrides)
    rows = make_rows(SIZE, 2, SIZE.rows)
    run(monkeypatch, recipe, make_network(SIZE, recipe), replace(rows, missing=np.zeros((len(rows.tokens), 2), bool)))


@pytest.mark.parametrize("preset", ["recommended", "published"])
def test_features_of_frozen_encoders(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    recipe = recipe_of(SIZE, preset)
    network = M2CAN(GivenFeatures(24), GivenFeatures(40), SIZE.sources, SIZE.classes)
    text, picture = (np.zeros((2 * SIZE.rows, width), np.float32) for width in (24, 40))
    run(monkeypatch, recipe, network, FeatureBatch(text, picture, np.arange(SIZE.rows), []))
