"""Pictures are made as the encoder's own card says: equal features to the library's own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image

from datasets_manifest.errors import InputError
from datasets_manifest.stream.images import PictureViews, decode_views
from services.cli.commands.train import dry_run_recipe
from tests.trainers.encoders import ten_pictures
from tests.trainers.encoders.hub_folders import write_clip, write_vit
from tests.trainers.tiny_run import small_recipe
from trainers.cluster.dry_run import DryRun
from trainers.compute.device_batches import normalise
from trainers.encoders.encoders import build_picture_encoder
from trainers.encoders.picture_card import described, picture_card
from trainers.preflight.inputs import recipe_of_run, require_own_name
from trainers.preflight.preparation import claim, prepare
from trainers.recipe import make_recipe
from trainers.recipe.data_sections import PictureEncoderSection

RESNET = {"name": "torchvision:resnet18", "weights": "IMAGENET1K_V1"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ten_pictures.draw(tmp_path_factory.mktemp("ten"))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:convnext_tiny"])
@torch.no_grad()
def test_torchvision_as_its_weights_transforms(name: str, files: list[Path]) -> None:
    torch.manual_seed(0)
    recipe = ten_pictures.recipe_of({"name": name})
    encoder = build_picture_encoder(recipe.encoders.picture, load_weights=False).eval()
    theirs = torchvision.models.get_model_weights(name.partition(":")[2]).DEFAULT.transforms()
    wanted = encoder.model(torch.stack([theirs(Image.open(file)) for file in files]))
    assert ten_pictures.least_cosine(ten_pictures.features(encoder, recipe, files), wanted) >= 0.999


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "efficientnet_lite0"])
@torch.no_grad()
def test_timm_as_its_own_transforms(name: str, files: list[Path]) -> None:
    torch.manual_seed(0)
    recipe = ten_pictures.recipe_of({"name": f"timm:{name}"})
    encoder = build_picture_encoder(recipe.encoders.picture, load_weights=False).eval()
    theirs = timm.data.create_transform(**timm.data.resolve_data_config({}, model=encoder.model))
    wanted = encoder.model(torch.stack([theirs(Image.open(file)) for file in files]))
    assert ten_pictures.least_cosine(ten_pictures.features(encoder, recipe, files), wanted) >= 0.999


@pytest.mark.parametrize(
    "stated", [{"mean": [0, 0, 0], "std": [1, 1, 1]}, {"channels": "bgr"}, {"resize": "squash"}, {"resize": 300}]
)
def test_each_value_matters_and_a_recipe_may_override_it(stated: dict[str, Any], files: list[Path]) -> None:
    torch.manual_seed(0)
    card, other = ten_pictures.recipe_of(RESNET), ten_pictures.recipe_of(RESNET, pictures=stated)
    encoder = build_picture_encoder(card.encoders.picture, load_weights=False)
    found = ten_pictures.least_cosine(*(ten_pictures.features(encoder, r, files) for r in (card, other)))
    assert found < 0.999
    views = other.data.pictures.views()
    assert all(np.array_equal(getattr(views, key), value) for key, value in stated.items())


def test_other_filters_are_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    data = ten_pictures.png(pixels)
    found, _ = decode_views(data, PictureViews(resize="squash", crop=32, interpolation="bicubic"), None)
    assert np.array_equal(found, np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bgr_turns_the_normalised_colours_round(dtype: torch.dtype) -> None:
    pictures = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    rgb, bgr = (normalise(pictures, dtype, PictureViews(channels=order)) for order in ("rgb", "bgr"))
    assert torch.equal(bgr, rgb[:, [2, 1, 0]])


@pytest.mark.parametrize(
    ("picture", "stated", "size"),
    [
        (RESNET, {}, (256, 224)),
        ({"name": "torchvision:resnet50"}, {}, (232, 224)),  # the newest weights' own
        ({"name": "torchvision:resnet50"}, {"crop": 320}, (320, 320)),
        ({"name": "torchvision:resnet50"}, {"resize": 96}, (96, 96)),
        ({"name": "torchvision:resnet50"}, {"resize": 300, "crop": 288}, (300, 288)),
        ({"name": "tiny"}, {}, (256, 224)),
    ],
)
def test_a_stated_size_goes_before_the_cards(
    picture: dict[str, Any], stated: dict[str, Any], size: tuple[int, int]
) -> None:
    views = ten_pictures.recipe_of(picture, pictures=stated).data.pictures.views()
    assert (views.resize, views.crop) == size


def test_an_encoder_without_a_card_says_what_is_assumed(tmp_path: Path) -> None:
    recipe = make_recipe(
        {"data": {"sources": ["a"], "target": "b"}, "encoders": {"picture": RESNET | {"weights": "my.pt"}}}
    )
    card = picture_card(recipe.encoders.picture)
    assert card.assumed
    assert (card.values["mean"], card.values["resize"]) == ((0.485, 0.456, 0.406), 256)
    assert "ImageNet's, assumed" in card.whence


def test_a_vision_model_without_a_card_is_shown_pictures_of_its_own_size(tmp_path: Path) -> None:
    transformers.ViTConfig(image_size=48, patch_size=16).save_pretrained(tmp_path)
    card = picture_card(PictureEncoderSection(name=f"hf:{tmp_path}"))
    assert card.assumed and "no card of hf:" in card.whence
    assert (card.values["crop"], card.values["resize"], card.values["mean"]) == (48, 54, (0.485, 0.456, 0.406))


def test_the_card_of_a_whole_dual_encoder_is_its_processors(tmp_path: Path) -> None:
    write_clip(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    before = picture_card(PictureEncoderSection(name=f"hf:{tmp_path}"))
    (tmp_path / "preprocessor_config.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    transformers.CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(tmp_path)
    card = picture_card(PictureEncoderSection(name=f"hf:{tmp_path}"))
    assert card.values == before.values and not card.assumed
    assert card.whence == f"of {tmp_path}'s processor_config.json"


@pytest.mark.parametrize("content", ['{"size": ', "[]", '{"image_processor_type": "ViTImageProcessor", "size": 3.5}'])
def test_a_damaged_card_is_not_taken_for_none(content: str, tmp_path: Path) -> None:
    write_vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(
        InputError, match=r"preprocessor_config\.json: encoders\.picture\.name: its card cannot be read"
    ):
        picture_card(PictureEncoderSection(name=f"hf:{tmp_path}"))


def test_a_value_of_a_card_that_is_not_usable_may_be_stated(tmp_path: Path) -> None:
    write_vit(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_std": [0, 0, 0]}))
    with pytest.raises(InputError, match=r"data\.pictures\.std: is not usable as it stands of .*greater than 0"):
        ten_pictures.recipe_of({"name": f"hf:{tmp_path}"})
    ten_pictures.recipe_of({"name": f"hf:{tmp_path}"}, pictures={"std": [1, 1, 1]})


def test_a_timm_encoder_of_oblong_pictures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = timm.get_pretrained_cfg("resnet10t")
    known.input_size = (3, 224, 192)
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda name: known)
    with pytest.raises(
        InputError, match=r"encoders\.picture\.name: wants pictures of 224 × 192 pixels, which are no squares"
    ):
        ten_pictures.recipe_of({"name": "timm:resnet10t"})


def test_the_choice_is_in_the_models_card_and_a_run_goes_on_with_it(tmp_path: Path) -> None:
    """The recipe that leaves all to the encoder's card names the run that stored the card's values."""
    recipe = small_recipe(
        tmp_path, ["run.name=a", "encoders.picture.name=timm:resnet10t", "encoders.picture.weights=random"]
    )
    prepared = prepare(recipe)
    kept = prepared.card.recipe.data.pictures
    assert (kept.interpolation, kept.mean, kept.resize) == ("bicubic", (0.485, 0.456, 0.406), 72)
    assert prepared.pictures == f"{described(prepared.recipe)} (of timm's pretrained_cfg of resnet10t)"
    claim(prepared)
    require_own_name(recipe, prepared.folder)
    assert prepare(recipe).recipe == prepared.recipe
    with pytest.raises(InputError, match=r"differs in data\.pictures\.interpolation"):
        prepare(small_recipe(tmp_path, ["run.name=a", "encoders.picture.name=timm:resnet10t",
                                        "encoders.picture.weights=random", "data.pictures.interpolation=box"]))  # fmt: skip
    # A run of an older version has no such keys: its pictures were normalised with ImageNet's values, bilinear.
    file = prepared.folder / "recipe.json"
    file.write_text(file.read_text().replace('"interpolation": "bicubic"', '"interpolation": null'))
    before = recipe_of_run(prepared.folder)
    assert before is not None and before.data.pictures.interpolation == "bilinear"
    assert prepare(recipe).recipe.data.pictures.interpolation == "bilinear"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_shows_the_choice(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = DryRun(1, "cpu", "fp32", 2, 5, 3, {"process": 1.0}, 0.1, 0.1, 1.0, 10, 0, 2, 20, 100)
    monkeypatch.setattr("trainers.training_run.prepare_and_start_ray", prepare)
    monkeypatch.setattr("trainers.cluster.dry_run.dry_run", lambda prepared: measured)
    dry_run_recipe(small_recipe(tmp_path, ["data.pictures.std=[0.5, 0.5, 0.5]"]), as_json=as_json)
    shown = capsys.readouterr().out
    assert "64 × 64 out of a shorter side of 72, bilinear, rgb, mean 0.485 0.456 0.406, deviation 0.5 0.5 0.5" in shown
    assert "ImageNet's: the encoder starts at random" in shown
