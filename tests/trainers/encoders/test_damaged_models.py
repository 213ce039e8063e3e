"""Folders of models that are damaged, or put together of two: each is refused before Ray starts, nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, FunnelConfig, T5Config, T5Model

from datasets_manifest.errors import InputError
from tests.trainers.encoders.hub_folders import write_clip, write_siglip, write_tokenizer, write_vit
from tests.trainers.encoders.test_hub_models import refusal
from tests.trainers.encoders.test_weights import Malice
from tests.trainers.tiny_run import small_recipe
from trainers.compute.vocabulary import encoder_vocabulary
from trainers.encoders.encoders import build_picture_encoder, build_text_encoder, picture_config, text_config
from trainers.encoders.hub_models import require_dual, require_tower
from trainers.preflight.preparation import prepare
from trainers.recipe.data_sections import PictureEncoderSection, TextEncoderSection

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def write_bert(folder: Path, *, pooler: bool = True, vocab_size: int = 15) -> Path:
    config = BertConfig(vocab_size=vocab_size, max_position_embeddings=12, **TOWER)
    BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    write_tokenizer(folder, bos_token="<start>")
    return folder


def altered(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        prepare(small_recipe(folder, overrides))
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 3000])
def test_weights_that_were_cut_off(size: int, tmp_path: Path) -> None:
    write_vit(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    said = refusal(str(tmp_path))
    assert "encoders.picture.weights: its weights could not be read (Error while deserializing header" in said


def test_a_pickle_in_a_folder_is_not_executed(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Malice(tmp_path / "trace")}, folder / "pytorch_model.bin")
    said = refusal(str(folder), "text")
    assert "encoders.text.weights: its weights could not be read (it is no file of torch, or holds more than" in said
    assert not (tmp_path / "trace").exists()


def test_weights_of_other_shapes_are_counted_and_named(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    altered(folder / "config.json", hidden_size=48)
    said = refusal(str(folder), "text")
    assert "encoders.text.name: 37 of its 39 tensors have other shapes than its configuration says" in said
    assert "embeddings.LayerNorm.bias (32,), not (48,)" in said


def test_a_pooler_that_is_read_must_be_there(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", pooler=False)
    said = refusal(str(folder), "text", pooling="pooler")
    assert "its weights lack 2 of the 39 tensors of a BertModel" in said and "pooler.dense.bias" in said
    section = TextEncoderSection(name=str(folder), pooling="mean")
    assert build_text_encoder(section, text_config(section, 15, 1, 12), load_weights=True).width == 32


def test_the_librarys_report_is_not_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_vit(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"classifier.weight": torch.zeros(3, 32)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_siglip(tmp_path / "siglip")
    capfd.readouterr()
    section = PictureEncoderSection(name=f"hf:{tmp_path}")
    assert build_picture_encoder(section, load_weights=True, config=picture_config(section)).width == 32
    require_dual(str(tmp_path / "siglip"))
    assert capfd.readouterr() == ("", "")


def test_weights_of_timm_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr("timm.create_model", away)
    with pytest.raises(InputError, match=r"weights of timm:resnet10t could not be fetched .*HF_HUB_OFFLINE=1"):
        build_picture_encoder(PictureEncoderSection(name="timm:resnet10t"), load_weights=True)


def test_both_that_is_no_dual_encoder(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    said = refused(tmp_path, "encoders.text={}", "encoders.picture={}", f"encoders.both={folder}")
    assert "encoders.both: is a model of the kind `bert`, which is no dual encoder" in said


def test_a_kind_of_two_classes_is_left_to_its_weights(tmp_path: Path) -> None:
    FunnelConfig().save_pretrained(tmp_path)
    require_tower(str(tmp_path), "text")


def test_a_model_of_pictures_for_texts_is_told_before_its_tokenizer(tmp_path: Path) -> None:
    write_vit(tmp_path / "vit")
    said = refused(tmp_path, f"encoders.text.name={tmp_path / 'vit'}")
    assert "encoders.text.name: is a ViTModel, which is no encoder of texts" in said


def test_a_tokenizer_without_its_files(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    said = refused(tmp_path, f"encoders.text.name={folder}", "data.texts.max_tokens=12")
    assert "encoders.text.name: its tokenizer has no words: its files are missing" in said


def test_a_kind_of_model_without_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    write_siglip(tmp_path / "siglip")
    for file in (tmp_path / "siglip").glob("tokenizer*"):
        file.unlink()
    said = refused(tmp_path, f"encoders.text.name={tmp_path / 'siglip'}", "data.texts.max_tokens=12")
    assert "encoders.text.name: no fast tokenizer could be read" in said


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", vocab_size=9)
    said = refused(tmp_path, f"encoders.text.name={folder}", "data.texts.max_tokens=12")
    assert "encoders.text.name: its tokenizer has 15 tokens and its embeddings are of 9" in said


def test_an_encoder_with_a_decoder_behind_it(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=15, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    write_tokenizer(tmp_path / "t5", bos_token="<start>")
    said = refused(tmp_path, f"encoders.text.name={tmp_path / 't5'}", "data.texts.max_tokens=12")
    assert "encoders.text.name: a T5Model takes no batch of texts alone" in said


@pytest.mark.parametrize(
    ("keys", "most"), [(["encoders.text.freeze=9"], 2), (["encoders.picture.name=tiny:4", "encoders.picture.freeze=7"], 5)]
)  # fmt: skip
def test_more_blocks_than_there_are(keys: list[str], most: int, tmp_path: Path) -> None:
    said = refused(tmp_path, *keys)
    assert f"freeze: the encoder has {most} blocks" in said and f"wanted 1 to {most}, `none` or `all`" in said


def test_a_file_of_weights_with_another_ending(tmp_path: Path) -> None:
    for part in ("text", "picture"):
        (tmp_path / "w.onnx").write_bytes(b"x")
        write_clip(tmp_path / "clip")
        said = refusal(str(tmp_path / "clip"), part, weights=str(tmp_path / "w.onnx"))
        assert f"encoders.{part}.weights: unknown weights" in said and ".safetensors, .pt, .pth or .bin" in said


def test_the_name_of_a_text_encoder_may_begin_as_that_of_a_picture_encoder(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    recipe = small_recipe(tmp_path, [f"encoders.text.name=hf:{folder}", "data.texts.max_tokens=12"])
    assert recipe.encoders.text.name == str(folder)
    assert encoder_vocabulary(recipe).size == 15


@pytest.mark.parametrize("part", ["text", "picture"])
def test_weights_that_are_no_numbers(part: str, tmp_path: Path) -> None:
    if part == "text":
        write_bert(tmp_path / "model")
    else:
        write_vit(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = {name: torch.full_like(x, float("nan")) for name, x in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    name = f"{'hf:' if part == 'picture' else ''}{file.parent}"
    keys = ["data.texts.max_tokens=12", "data.pictures.crop=64", f"encoders.{part}.name={name}"]
    assert f"encoders.{part}.weights: the encoder gives features that are no finite" in refused(tmp_path, *keys)
