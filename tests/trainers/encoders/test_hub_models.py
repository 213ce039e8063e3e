"""Transformers' vision models and both towers of dual encoders, from folders. No network is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from datasets_manifest.errors import InputError
from tests.trainers.encoders import ten_pictures
from tests.trainers.encoders.hub_folders import WRITERS, write_clip, write_siglip, write_tokenizer, write_vit
from tests.trainers.tiny_run import make_loop, small_recipe
from trainers.compute.vocabulary import encoder_vocabulary
from trainers.encoders.encoders import build_picture_encoder, build_text_encoder, picture_config, text_config
from trainers.encoders.hub_models import require_equal
from trainers.m2can.encoders.freezing import parameter_blocks
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.predictor import Predictor
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import Recipe, make_recipe
from trainers.recipe.data_sections import PictureEncoderSection, TextEncoderSection

TEXTS = ["a photo of the cat", "the sea", "good dog bad dog", "a hill a town"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ten_pictures.draw(tmp_path_factory.mktemp("ten"))


@torch.no_grad()
def picture_features(model: Any, folder: Path, files: list[Path]) -> Tensor:
    """By the library alone."""
    processor = AutoImageProcessor.from_pretrained(folder)
    tower = getattr(model, "vision_model", model)
    out = tower(**processor(images=[Image.open(file) for file in files], return_tensors="pt"))
    pooled = out.pooler_output if out.get("pooler_output") is not None else out.last_hidden_state[:, 0]
    return pooled.flatten(1)


@pytest.mark.parametrize("family", WRITERS)
def test_features_are_those_of_the_librarys_own_preprocessing(family: str, tmp_path: Path, files: list[Path]) -> None:
    model = WRITERS[family](tmp_path)
    wanted = picture_features(model, tmp_path, files)
    recipe = ten_pictures.recipe_of({"name": f"hf:{tmp_path}"})
    section = recipe.encoders.picture
    encoder = build_picture_encoder(section, load_weights=True, config=picture_config(section))
    # transformers rounds half a pixel of the centre down, torchvision and we to an even number; a ConvNeXt with random
    # filters of 4 pixels sees that.
    least = 0.995 if family == "convnext" else 0.999
    assert ten_pictures.least_cosine(ten_pictures.features(encoder, recipe, files), wanted) >= least
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channels": "rgb"}
    if family in ("siglip", "vit", "mobilevit"):
        wrong = ten_pictures.recipe_of({"name": f"hf:{tmp_path}"}, pictures=imagenet)
        assert ten_pictures.least_cosine(ten_pictures.features(encoder, wrong, files), wanted) < 0.999


@pytest.mark.parametrize("family", WRITERS)
def test_every_parameter_that_trains_gets_a_gradient(family: str, tmp_path: Path) -> None:
    """Data parallelism waits for all of them."""
    WRITERS[family](tmp_path)
    section = PictureEncoderSection(name=f"hf:{tmp_path}")
    encoder = build_picture_encoder(section, load_weights=True, config=picture_config(section)).eval()
    encoder.model(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("family", WRITERS)
def test_freeze_counts_the_layers_of_every_family(family: str, tmp_path: Path) -> None:
    WRITERS[family](tmp_path)
    section = PictureEncoderSection(name=f"hf:{tmp_path}", freeze=2)
    encoder = build_picture_encoder(section, load_weights=True, config=picture_config(section))
    blocks = {"convnext": 5, "mobilevit": 6}.get(family, 3)
    of_layers = {
        "convnext": "encoder.stages.",
        "vit": "layers.",
        "clip": "encoder.layers.",
        "siglip": "encoder.layers.",
    }
    layers = of_layers.get(family, "encoder.layer.")
    assert len(parameter_blocks(encoder)) == blocks
    trained = {name.removeprefix("model.") for name, p in encoder.model.named_parameters() if p.requires_grad}
    unread = {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}  # no feature depends on some of them
    for name, p in encoder.model.model.named_parameters():
        frozen = name.startswith(("embeddings.", "pre_layrnorm.", "conv_stem.", f"{layers}0."))
        assert p.requires_grad != frozen or name in unread, name
    assert any(name.startswith(f"{layers}1.") for name in trained)
    if family in ("clip", "siglip"):
        text = TextEncoderSection(name=str(tmp_path), freeze=2)
        tower = build_text_encoder(text, text_config(text, 15, 1, 12), load_weights=True)
        assert len(parameter_blocks(tower)) == 3
        for name, p in tower.model.named_parameters():
            assert p.requires_grad != name.startswith(("embeddings.", "encoder.layers.0.")), name


def recipe_of_both(folder: Path, **keys: Any) -> Recipe:
    return make_recipe({"data": {"sources": ["a"], "target": "b"}, "encoders": {"both": f"hf:{folder}"}, **keys})


def network_of(recipe: Recipe, *, load_weights: bool = True) -> M2CAN:
    words = encoder_vocabulary(recipe)
    config = text_config(recipe.encoders.text, words.size, words.pad_id, recipe.data.texts.most_tokens)
    pictures = picture_config(recipe.encoders.picture)
    return build_network(recipe, config, 3, load_weights=load_weights, pictures=pictures)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_similarities_before_the_first_step_are_the_dual_encoders(family: str, tmp_path: Path) -> None:
    model = WRITERS[family](tmp_path)
    recipe = recipe_of_both(tmp_path, data={"sources": ["a"], "target": "b", "texts": {"max_tokens": 12}})
    assert (recipe.encoders.text.name, recipe.encoders.picture.name) == (str(tmp_path), f"hf:{tmp_path}")
    network = network_of(recipe).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    padding = {"clip": True, "siglip": "max_length"}[family]  # each as the library's documents say
    given = tokenizer(TEXTS, padding=padding, max_length=12, return_tensors="pt")
    pixels = torch.randn(len(TEXTS), 3, 224, 224, generator=torch.Generator().manual_seed(0))
    asked = {"attention_mask": given["attention_mask"]} if family == "clip" else {}
    with torch.no_grad():
        theirs = model(input_ids=given["input_ids"], pixel_values=pixels, **asked)
        wanted = (
            torch.nn.functional.normalize(theirs.text_embeds, dim=-1)
            @ torch.nn.functional.normalize(theirs.image_embeds, dim=-1).T
        )
        short = int(given["attention_mask"].sum(1).max())
        tokens, mask = given["input_ids"][:, :short], given["attention_mask"][:, :short]
        texts = network.text_projection(network.text_encoder(tokens, mask, mask.sum(1)))
        pictures = network.picture_projection(network.picture_encoder.model(pixels))
    torch.testing.assert_close(texts @ pictures.T, wanted, atol=1e-5, rtol=1e-4)
    assert wanted.std() > 0.01  # they differ


def test_both_and_another_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoders.*both.*text\.name bert"):
        make_recipe({"data": {"sources": ["a"], "target": "b"}, "encoders": {"both": "x", "text": {"name": "bert"}}})
    recipe = recipe_of_both(tmp_path)
    assert make_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_one_tower_alone(family: str, tmp_path: Path) -> None:
    model = WRITERS[family](tmp_path)
    section = TextEncoderSection(name=str(tmp_path))
    encoder = build_text_encoder(section, text_config(section, 15, 1, 12), load_weights=True).eval()
    tokens = torch.tensor([[2, 4, 5, 3, 1], [2, 9, 10, 11, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        found = encoder(tokens, mask, mask.sum(1))
        if family == "siglip":
            wanted = model.text_model(torch.nn.functional.pad(tokens, (0, 7), value=1)).pooler_output
        else:
            wanted = model.text_model(tokens, attention_mask=mask).pooler_output
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_run_with_both_towers_keeps_its_preprocessing_and_predicts_without_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    write_clip(folder)
    recipe = small_recipe(tmp_path, [
        f"encoders.both={folder}", f"encoders.text.name={folder}", f"encoders.picture.name=hf:{folder}",
        "data.pictures.resize=null", "data.pictures.crop=null", "data.texts.max_tokens=null",
    ])  # fmt: skip
    run = prepare(recipe)
    views = run.card.recipe.data.pictures.views()
    assert (views.crop, views.interpolation, round(views.mean[0], 3)) == (224, "bicubic", 0.481)
    assert run.recipe.data.texts.max_tokens == 12
    assert any("more than 12 tokens and are cut" in note for note in run.notes)
    assert "preprocessor_config.json" in run.pictures
    loop = make_loop(run)
    wanted = _predictions(loop, tmp_path, run)
    (folder / "config.json").unlink()
    found = Predictor.load(tmp_path / "model").predict(["the cat"], [[str(next(tmp_path.rglob("*.jpg")))]])
    np.testing.assert_allclose(found.probs, wanted, atol=1e-6)


def _predictions(loop: Any, folder: Path, run: Prepared) -> np.ndarray:
    from trainers.model.checkpoint import save_model

    save_model(folder / "model", loop.network, run.card)
    predictor = Predictor(loop.network, run.card, torch.device("cpu"))
    return predictor.predict(["the cat"], [[str(next(folder.rglob("*.jpg")))]]).probs


# --- what is refused ---


def refusal(name: str, part: str = "picture", **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        if part == "picture":
            section = PictureEncoderSection(name=f"hf:{name}", **keys)
            build_picture_encoder(section, load_weights=True, config=picture_config(section))
        else:
            text = TextEncoderSection(name=name, **keys)
            build_text_encoder(text, text_config(text, 15, 1, 12), load_weights=True)
    return str(caught.value)


def test_a_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refusal("nobody/has-this-model")
    assert "encoders.picture.name" in said and "folder" in said and "cache" in said and "HF_HUB_OFFLINE" in said


def test_a_tower_that_is_none(tmp_path: Path) -> None:
    BertModel(
        BertConfig(vocab_size=15, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path / "bert")
    write_vit(tmp_path / "vit")
    assert "BertModel, which is no encoder of pictures" in refusal(str(tmp_path / "bert"))
    assert "ViTModel, which is no encoder of texts" in refusal(str(tmp_path / "vit"), "text")


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    write_vit(tmp_path / "vit")
    write_siglip(tmp_path / "siglip")
    (tmp_path / "vit" / "model.safetensors").write_bytes((tmp_path / "siglip" / "model.safetensors").read_bytes())
    said = refusal(str(tmp_path / "vit"))
    assert "lack" in said and "of a ViTModel" in said and "weights with " in said


def test_code_in_a_folder_is_not_executed(tmp_path: Path) -> None:
    write_vit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "encoders.picture.name" in refusal(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_weights_by_name_are_torchvisions(tmp_path: Path) -> None:
    write_vit(tmp_path)
    assert "encoders.picture.weights" in refusal(str(tmp_path), weights="IMAGENET1K_V1")


def test_a_tokenizer_without_a_padding_token(tmp_path: Path) -> None:
    write_clip(tmp_path)
    write_tokenizer(tmp_path, bos_token="<start>", pad_token=None)
    with pytest.raises(InputError, match=r"encoders\.text\.name.*no pad_token"):
        encoder_vocabulary(recipe_of_both(tmp_path))


def test_pictures_smaller_than_a_patch(tmp_path: Path) -> None:
    write_convnext = WRITERS["convnext"]
    write_convnext(tmp_path / "model")
    with pytest.raises(InputError, match=r"data\.pictures\.crop: the picture encoder takes no pictures of this size"):
        prepare(small_recipe(tmp_path, [f"encoders.picture.name=hf:{tmp_path / 'model'}", "data.pictures.crop=8"]))


def test_a_tower_joins_sentences_with_a_blank(tmp_path: Path) -> None:
    """Its end token between two sentences would end the text."""
    write_clip(tmp_path)
    recipe = recipe_of_both(tmp_path, data={"sources": ["a"], "target": "b", "texts": {"max_tokens": 12}})
    host = ten_pictures.host_of(recipe, encoder_vocabulary(recipe), [["the sea", "a hill"]], [[]])
    assert host.tokens.tolist() == [[2, 7, 10, 4, 11, 3]]


def test_a_folder_without_weights(tmp_path: Path) -> None:
    write_vit(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "encoders.picture.weights: its weights could not be read" in refusal(str(tmp_path))


def test_a_vision_model_that_reads_more_than_pictures(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=8, num_patches=16)).save_pretrained(tmp_path)
    assert "does not take a batch of pictures" in refusal(str(tmp_path))


def test_towers_that_are_joined_in_another_way(tmp_path: Path) -> None:
    model = write_clip(tmp_path)
    network = network_of(recipe_of_both(tmp_path, data={"sources": ["a"], "target": "b", "texts": {"max_tokens": 12}}))
    projections = network.text_projection.linear, network.picture_projection.linear
    torch.nn.init.ones_(projections[1].weight)
    with pytest.raises(InputError, match="how a CLIPModel joins its towers is not known here"):
        require_equal(model, network.text_encoder, network.picture_encoder.model, projections)


def test_weights_that_torchvision_cannot_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models.get_model", away)
    with pytest.raises(InputError, match=r"the weights could not be fetched \(no route\)"):
        build_picture_encoder(PictureEncoderSection(name="torchvision:resnet18"), load_weights=True)
