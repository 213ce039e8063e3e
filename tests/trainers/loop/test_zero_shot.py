"""The zero-shot classifier of a dual encoder: what the library itself says of the classes' prompts, before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from datasets_manifest.errors import InputError
from datasets_manifest.postcards.words import CLASSES
from tests.trainers.encoders.hub_folders import write_clip
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.loop.floor import FoundFloor, find_floor
from trainers.loop.loop import Loop
from trainers.m2can.floor import ZeroShotHead
from trainers.model.card import load_card
from trainers.model.floor_files import floor_metrics, write_floor
from trainers.model.predictor import Predictor
from trainers.recipe import make_recipe

PROMPTS = ["a photo of {}", "the {}"]


def of_clip(folder: Path, *more: str) -> list[str]:
    views = [f"data.pictures.{key}=null" for key in ("resize", "crop")]
    towers = [f"encoders.both={folder}", f"encoders.text.name={folder}", f"encoders.picture.name=hf:{folder}"]
    frozen = ["encoders.text.freeze=all", "encoders.picture.freeze=all"]
    return [*views, *towers, *frozen, "data.texts.max_tokens=null", f"encoders.prompts={json.dumps(PROMPTS)}", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    torch.manual_seed(0)
    return write_clip(place / "clip", CLASSES)


@pytest.fixture(scope="module")
def loop(place: Path, model: Any) -> Loop:
    return make_loop(prepared_run(place, of_clip(place / "clip")))


@pytest.fixture(scope="module")
def found(loop: Loop) -> FoundFloor:
    found = find_floor(loop)
    assert found is not None and found.zero_shot is not None
    return found.zero_shot


def unit(x: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(getattr(x, "pooler_output", x), dim=-1)


@torch.no_grad()
def by_the_library(model: Any, folder: Path, texts: list[str], files: list[str]) -> torch.Tensor:
    """Softmax over the classes of 1 / temperature · (text + picture) · mean prompt; one picture a record."""
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)

    def encoded(some: list[str]) -> torch.Tensor:
        given = tokenizer(some, padding=True, truncation=True, max_length=12, return_tensors="pt")
        return unit(model.get_text_features(input_ids=given["input_ids"], attention_mask=given["attention_mask"]))

    prompts = torch.stack([encoded([prompt.format(name) for name in CLASSES]) for prompt in PROMPTS])
    pixels = processor(images=[Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    joint = encoded(texts) + unit(model.get_image_features(pixel_values=pixels))
    return (model.logit_scale.exp() * joint @ unit(prompts.mean(0)).T).softmax(-1)


def test_it_is_the_librarys(place: Path, model: Any, loop: Loop, found: FoundFloor) -> None:
    folder = write_floor(
        place / "run", found.network, loop.frozen, loop.card, found.metrics, found.evaluation, zero_shot=True
    )
    assert folder.name == "zero_shot" and floor_metrics(place / "run") is None
    card = load_card(folder / "model")
    assert card.zero_shot and not card.floor
    predictor = Predictor.load(folder)
    part = loop.corpus.val[-1]
    assert part is not None
    rows = [row for row in loop.corpus.table.slice(part.start, len(part)).to_pylist() if len(row["images"]) == 1]
    assert len(rows) > 3
    texts, files = [" ".join(row["texts"]) for row in rows], [row["images"][0] for row in rows]
    seen = predictor.predict(texts, files)
    wanted = by_the_library(model, place / "clip", texts, files)
    assert seen.probs == pytest.approx(wanted.numpy(), abs=2e-3)  # pictures are resized by another library
    assert wanted.std(0).min() > 3e-3  # they are not all alike


def test_its_accuracies_are_noted_and_nothing_of_it_is_chosen(loop: Loop, found: FoundFloor) -> None:
    part = loop.corpus.val[-1]
    assert part is not None
    noted = found.evaluation[f"{part.domain}/{part.split}/label"].numpy()
    right = float((noted == loop.batches.labels[part.start : part.stop]).mean())
    assert found.metrics["target/val/accuracy"] == right
    assert "selection/score" not in found.metrics
    again = find_floor(loop)
    assert again is not None
    shown = {name: x for name, x in again.metrics.items() if name.startswith("zero_shot/")}
    parts = [f"{part}/val/{key}" for part in ("source", "target") for key in ("accuracy", "macro_f1")]
    assert shown == {f"zero_shot/{name}": found.metrics[name] for name in parts}


def test_pictures_that_are_missing_add_nothing(loop: Loop, found: FoundFloor) -> None:
    head = found.network.floor
    assert isinstance(head, ZeroShotHead)
    features = torch.randn(2, sum(head.widths), generator=torch.Generator().manual_seed(1))
    features[1] = torch.cat([features[0, : head.widths[0]], torch.zeros(head.widths[1])])
    text = head.projections[0](features[:1, : head.widths[0]])
    torch.testing.assert_close(head.joint(features)[1:], text)
    assert not torch.equal(head.joint(features)[0], head.joint(features)[1])


def test_a_network_that_does_not_begin_as_a_dual_encoder_has_none(place: Path, model: Any, tmp_path: Path) -> None:
    assert find_floor(make_loop(prepared_run(tmp_path))).zero_shot is None  # type: ignore[union-attr]
    random = of_clip(place / "clip", "encoders.text.weights=random", "encoders.picture.weights=random")
    found = find_floor(make_loop(prepared_run(place, random)))
    assert found is not None and found.zero_shot is None
    assert not any(name.startswith("zero_shot/") for name in found.metrics)


def test_prompts_have_a_place_for_the_name() -> None:
    with pytest.raises(InputError, match=r"encoders\.prompts: .*a photo.*wanted `\{\}` in each"):
        make_recipe({"data": {"sources": ["a"], "target": "b"}, "encoders": {"prompts": ["{}", "a photo"]}})
