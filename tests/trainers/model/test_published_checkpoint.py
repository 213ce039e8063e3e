"""Published checkpoint files: written by hand under the published names, brought in, used, written out again."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets_manifest.errors import InputError
from datasets_manifest.stream.text import build_tokenizer
from trainers.compute.vocabulary import encoder_vocabulary
from trainers.model.predictor import Predictor
from trainers.model.published_checkpoint import PublishedCheckpoint, export_published, import_published, read_published
from trainers.recipe import Recipe, make_recipe

CLASSES = ["bad", "fair", "good", "best"]
WIDTHS = {"text_feature_extractor.hidden.0": (256, 32), "image_encoder.linear.0": (256, 512)}
FUSION = {"U": (128, 256), "V": (128, 256), "P": (64, 128), "h1": (64, 256), "h2": (64, 256)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT's configuration, weights and tokenizer."""
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = Tokenizer.from_str(build_tokenizer(["a good photo", "a bad photo of a dog"]))
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **specials)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(bert: Path) -> Recipe:
    return make_recipe(
        {
            "preset": "published",
            "data": {
                "sources": ["catalog:PCCD", "catalog:RPCD"],
                "target": "catalog:AVA",
                "texts": {"max_tokens": 32},
                "pictures": {"resize": 40, "crop": 32},
            },
            "encoders": {"text": {"name": str(bert)}, "picture": {"name": "torchvision:resnet18"}},
        }
    )


@pytest.fixture(scope="module")
def state(bert: Path) -> dict[str, Tensor]:
    """The tensors of a published network with small encoders, named as the documentation of the method has them."""
    from torchvision.models import resnet18
    from transformers import BertModel

    torch.manual_seed(1)
    picture = resnet18()
    picture.fc = torch.nn.Linear(512, 512)
    tensors = {f"bert_model.{name}": x for name, x in BertModel.from_pretrained(bert).state_dict().items()}
    tensors |= {f"model_image.{name}": x for name, x in picture.state_dict().items()}
    shapes = WIDTHS | {f"mlb.{name}": shape for name, shape in FUSION.items()}
    shapes |= {f"classifiers.{i}.linear": (4, 64) for i in range(2)}
    for head in ("text_cls", "image_cls"):
        shapes |= {f"{head}.0": (128, 256), f"{head}.2": (64, 128), f"{head}.3.linear": (4, 64)}
    for name, shape in shapes.items():
        tensors |= {f"{name}.weight": torch.randn(shape) * 0.1, f"{name}.bias": torch.randn(shape[0]) * 0.1}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def write(file: Path, state: dict[str, Any], **other: Any) -> Path:
    torch.save({"epoch": 3, "model_state": state, "best_acc": 0.75} | other, file)
    return file


def bring_in(found: PublishedCheckpoint, recipe: Recipe, out: Path) -> Predictor:
    import_published(found, recipe, encoder_vocabulary(recipe), CLASSES, out)
    return Predictor.load(out, "cpu")


def test_a_checkpoint_comes_in_predicts_as_the_published_network_and_goes_out_unchanged(
    tmp_path: Path, recipe: Recipe, state: dict[str, Tensor]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    write(tmp_path / "checkpoints" / "best.pth", {f"module.{name}": x for name, x in state.items()})
    found = read_published(tmp_path / "checkpoints")
    assert (found.epoch, found.best_acc, found.num_heads, found.num_classes) == (3, 0.75, 2, 4)
    predictor = bring_in(found, recipe, tmp_path / "model")
    assert (predictor.card.sources, predictor.card.target) == (["PCCD", "RPCD"], "AVA")
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)).save(picture)
    got = predictor.predict([["a good photo"]], [[str(picture)]])
    np.testing.assert_allclose(got.probs, by_hand(state, predictor, picture), rtol=1e-4)
    export_published(predictor.network, predictor.card.recipe, tmp_path / "out.pth", epoch=3)
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert (set(back), back["epoch"], math.isnan(back["best_acc"])) == ({"epoch", "model_state", "best_acc"}, 3, True)
    assert back["model_state"].keys() == state.keys()
    assert all(torch.equal(back["model_state"][name], tensor) for name, tensor in state.items())


def by_hand(state: dict[str, Tensor], predictor: Predictor, picture: Path) -> np.ndarray:
    """The published network's formula on the tensors as the file names them."""
    from torchvision.models import resnet18
    from transformers import BertModel

    from datasets_manifest.stream.encode import collate, encode_samples, index_table
    from trainers.compute.device_batches import make_encoding, normalise

    zero = np.zeros(1)
    index = index_table(zero, zero, zero)
    encoding = make_encoding(predictor.card.recipe, predictor.card.vocabulary)
    for name, column in encode_samples([["a good photo"]], [[str(picture)]], index, encoding).items():
        index = index.append_column(name, column)
    host = collate(index, encoding)

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    text = BertModel.from_pretrained(predictor.card.recipe.encoders.text.name).eval()
    text.load_state_dict(below("bert_model."))
    image = resnet18()
    image.fc = torch.nn.Linear(512, 512)
    image.load_state_dict(below("model_image."))
    with torch.inference_mode():
        tokens, mask = torch.from_numpy(host.tokens), torch.from_numpy(host.mask)
        pooled = text(input_ids=tokens, attention_mask=mask).pooler_output
        pixels = normalise(torch.from_numpy(host.pictures.copy()), torch.float32, host.views)
        t = torch.nn.functional.normalize(linear("text_feature_extractor.hidden.0", pooled).relu(), dim=-1)
        v = torch.nn.functional.normalize(linear("image_encoder.linear.0", image.eval()(pixels)).relu(), dim=-1)
        f = linear("mlb.P", torch.sigmoid(linear("mlb.U", t) * linear("mlb.V", v)))
        f = f + linear("mlb.h1", t) + linear("mlb.h2", v)
        logits = (linear("classifiers.0.linear", f) + linear("classifiers.1.linear", f)) / 2
    return logits.softmax(-1).numpy()


def test_missing_unexpected_and_misshapen_tensors_are_named(
    tmp_path: Path, recipe: Recipe, state: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match=r"2 unexpected: extra\.bias, module\.more") as caught:
        read_published(write(tmp_path / "a.pth", state | {"extra.bias": torch.ones(1), "module.more": torch.ones(1)}))
    assert caught.value.field == "model_state"
    lacking = {name: x for name, x in state.items() if not name.startswith("mlb.U")}
    lacking["mlb.W.weight"] = torch.ones(1)
    with pytest.raises(InputError, match=r"2 missing: mlb\.U\.bias, mlb\.U\.weight; 1 unexpected: mlb\.W\.weight"):
        bring_in(read_published(write(tmp_path / "b.pth", lacking)), recipe, tmp_path / "m")
    wrong = state | {"mlb.U.weight": torch.ones(3, 3)}
    with pytest.raises(InputError, match=r"mlb\.U\.weight: wrong shape; found \[3, 3\]; wanted \[128, 256\]"):
        bring_in(read_published(write(tmp_path / "c.pth", wrong)), recipe, tmp_path / "m")
    assert not list(tmp_path.glob("*m*")), "a refused import leaves nothing behind"


class Planted:
    """Pickled, it would run a function on loading."""

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return (Path.mkdir, (Path("planted"), 0o777))  # type: ignore[return-value]


def test_files_that_are_no_checkpoints_are_refused(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "model_state": Planted()}, tmp_path / "planted.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Planted()))
    (tmp_path / "text.pth").write_text("no weights")
    write(tmp_path / "whole.pth", state)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    for name in ("planted", "plain", "text", "cut"):
        with pytest.raises(InputError, match="cannot be read as weights"):
            read_published(tmp_path / f"{name}.pth")
    assert not (tmp_path / "planted").exists()
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(InputError, match="not a published checkpoint"):
        read_published(tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"model_state\.a"):
        read_published(write(tmp_path / "b.pth", {"a": 1}))
    with pytest.raises(InputError, match=r"holds 7 checkpoints.*bare\.pth"):
        read_published(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_published(tmp_path / "gone")


def test_only_a_network_of_the_published_parts_goes_out(
    tmp_path: Path, recipe: Recipe, state: dict[str, Tensor]
) -> None:
    predictor = bring_in(read_published(write(tmp_path / "a.pth", state)), recipe, tmp_path / "m")
    text = recipe.encoders.text.model_copy(update={"pooling": "mean"})
    other = recipe.model_copy(update={"encoders": recipe.encoders.model_copy(update={"text": text})})
    with pytest.raises(InputError, match=r"encoders\.text\.pooling"):
        export_published(predictor.network, other, tmp_path / "out.pth")
    with pytest.raises(InputError, match="is there already"):
        export_published(predictor.network, recipe, tmp_path / "a.pth")
    with pytest.raises(InputError, match="is there already"):
        bring_in(read_published(tmp_path / "a.pth"), recipe, tmp_path / "m")
