"""LoRA of every family: it starts as the base, trains alone, and is merged into plain weights. No network is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from datasets_manifest.errors import InputError
from tests.test_docs_blocks import ROOT, blocks
from tests.trainers.encoders.hub_folders import WRITERS, write_clip
from tests.trainers.tiny_run import make_loop, prepared_run, small_recipe, two_epochs
from trainers.compute.compiled import compilable_blocks
from trainers.encoders.adapters import merge_adapters
from trainers.encoders.encoders import build_picture_encoder, build_text_encoder, picture_config, text_config
from trainers.loop.loop import Loop
from trainers.m2can.encoders.freezing import blocks_of, checkpoint_activations
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.card import load_card
from trainers.model.predictor import Predictor
from trainers.model.trained_network import complete_model
from trainers.preflight.preparation import Prepared, prepare
from trainers.recipe import make_recipe
from trainers.recipe.data_sections import PictureEncoderSection, TextEncoderSection
from trainers.tracking.registration import ModelToLog, save

Encoder = TextEncoder | PictureEncoder
LORA = {"rank": 2, "alpha": 4}
PICTURES = [
    "hf:clip", "hf:siglip", "hf:dinov2", "hf:convnext", "tiny:4", "torchvision:resnet18", "timm:vit_tiny_patch16_224",
    "timm:efficientnet_b0",
]  # fmt: skip
TEXTS = ["tiny:32x2", "hf:clip", "hf:siglip"]
SHOWN = ["a sunny day", "rain"]


def made(name: str, folder: Path, *, text: bool, **keys: Any) -> Encoder:
    """An encoder; the same seed gives the same weights."""
    pretrained = name.startswith("hf:")
    if pretrained and not folder.exists():
        WRITERS[name[3:]](folder)
    torch.manual_seed(0)
    keys["weights"] = "pretrained" if pretrained else "random"
    if text:
        section = TextEncoderSection(name=str(folder) if pretrained else name, **keys)
        return build_text_encoder(section, text_config(section, 15, 1, 12), load_weights=True)
    picture = PictureEncoderSection(name=f"hf:{folder}" if pretrained else name, **keys)
    return build_picture_encoder(picture, load_weights=True, config=picture_config(picture))


def shown_to(encoder: Encoder) -> Callable[[], Tensor]:
    """Calls the encoder with two texts or pictures."""
    if isinstance(encoder, TextEncoder):
        tokens = torch.tensor([[2, 4, 5, 3, 1], [2, 9, 10, 11, 3]])
        mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
        return lambda: encoder(tokens, mask, mask.sum(1))
    side = 64 if encoder.groups.layers else 224
    pictures = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return lambda: encoder.model(pictures)


@torch.no_grad()
def move(network: nn.Module) -> None:
    """As if the adapters had been trained."""
    draw = torch.Generator().manual_seed(2)
    for name, p in network.named_parameters():
        if "lora_B" in name:
            p.copy_(torch.randn(p.shape, generator=draw) * 0.05)


@pytest.mark.parametrize(("name", "text"), [*((n, False) for n in PICTURES), *((n, True) for n in TEXTS)])
def test_an_adapter_starts_as_the_base_trains_alone_and_is_merged(name: str, text: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    base = made(name, folder, text=text, freeze="all").eval()
    adapted = made(name, folder, text=text, lora=LORA).eval()
    with torch.no_grad():
        assert torch.equal(shown_to(adapted)(), shown_to(base)())
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    shown_to(adapted)().sum().backward()
    assert all(p.grad is not None for p in trained.values())  # data parallelism needs every gradient
    move(adapted)
    network = nn.Module()
    network.text_encoder, network.picture_encoder = adapted, base  # type: ignore[assignment]
    with torch.no_grad():
        moved = shown_to(adapted)()
        merge_adapters(network)  # type: ignore[arg-type]
        merged = shown_to(adapted)()
        assert not torch.equal(moved, shown_to(base)())
    torch.testing.assert_close(merged, moved, rtol=1e-5, atol=1e-5 * float(moved.abs().max()))
    assert list(adapted.state_dict()) == list(base.state_dict())
    base.load_state_dict(adapted.state_dict())
    with torch.no_grad():
        assert torch.equal(shown_to(base)(), merged)


def adapted_layers(encoder: Encoder) -> set[str]:
    return {name.split(".lora_A")[0] for name, _ in encoder.model.named_parameters() if ".lora_A" in name}


def test_targets_are_names_or_ends_of_names(tmp_path: Path) -> None:
    attention = {f"encoder.layer.{n}.attention.self.{part}" for n in (0, 1) for part in ("query", "value")}
    lora = LORA | {"targets": ["query", "self.value"]}
    assert adapted_layers(made("tiny:32x2", tmp_path, text=True, lora=lora)) == attention
    first = LORA | {"targets": ["encoder.layer.1.output.dense"]}
    assert adapted_layers(made("tiny:32x2", tmp_path, text=True, lora=first)) == {"encoder.layer.1.output.dense"}
    convs = LORA | {"targets": ["0.0"]}  # not 10.0 or 0.00
    assert adapted_layers(made("tiny:4", tmp_path, text=False, lora=convs)) == {"0.0"}


def test_frozen_blocks_have_no_adapter(tmp_path: Path) -> None:
    found = adapted_layers(made("tiny:32x2", tmp_path, text=True, lora=LORA, freeze=2))
    assert found and all(name.startswith("encoder.layer.1.") for name in found)


@pytest.mark.parametrize(
    ("name", "text", "targets", "says"),
    [
        (
            "tiny:32x2",
            True,
            ["query", "q_proj"],
            ["encoders.text.lora.targets", "'q_proj'", "query, key, value, dense"],
        ),
        ("tiny:4", False, ["convs1"], ["encoders.picture.lora.targets", "nearest: conv1"]),
        ("torchvision:vit_b_32", False, ["out_proj"], ["'out_proj'", "mlp.0, mlp.3"]),  # its weights alone are read
        ("torchvision:swin_t", False, ["qkv"], ["'qkv'"]),
        ("torchvision:mobilenet_v3_small", False, ["block.1.0"], ["'block.1.0'"]),  # of groups
    ],
)
def test_targets_that_match_nothing_are_refused(
    name: str, text: bool, targets: list[str], says: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="matches no layer that can have an adapter") as caught:
        made(name, tmp_path, text=text, lora=LORA | {"targets": targets})
    for word in says:
        assert word in str(caught.value)


@pytest.mark.parametrize("lora", [LORA, {"rank": 4, "targets": ["query"]}])
def test_no_layer_is_left(lora: dict[str, Any], tmp_path: Path) -> None:
    said = r"encoders\.text\.lora: the encoder has no layer that can have an adapter; wanted a smaller .* encoders\.text\.freeze"
    with pytest.raises(InputError, match=said):
        made("tiny:32x1", tmp_path, text=True, lora=lora, freeze=2)


def test_packed_texts_are_padded_texts(tmp_path: Path) -> None:
    encoder = made("tiny:32x2", tmp_path, text=True, lora=LORA).eval()
    assert isinstance(encoder, TextEncoder) and encoder.packs
    move(encoder)
    tokens, mask = torch.tensor([[2, 4, 5, 3], [2, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens, mask, mask.sum(1)), encoder(tokens, mask), rtol=1e-5, atol=1e-5)


def test_half_precision_casts_the_adapters_too(tmp_path: Path) -> None:
    encoder = made("tiny:32x2", tmp_path, text=True, lora=LORA)
    move(encoder)
    single = shown_to(encoder)()
    with torch.autocast("cpu", torch.bfloat16):
        half = shown_to(encoder)()
    torch.testing.assert_close(half.float(), single, rtol=0.1, atol=0.05)
    half.float().square().sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [("tiny:32x1", True), ("tiny:4", False)])
def test_compiled_blocks_have_their_adapters(name: str, text: bool, tmp_path: Path) -> None:
    torch.compiler.reset()
    found = []
    counter = CompileCounterWithBackend("aot_eager")
    for compiled in (False, True):
        encoder = made(name, tmp_path, text=text, lora=LORA).eval()
        move(encoder)
        if compiled:
            encoder.half_weights.enabled = False
            for block in compilable_blocks(encoder.model):
                block.compile(backend=counter)
        features = shown_to(encoder)()
        features.square().sum().backward()
        found.append((features.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}))
    assert counter.frame_count > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "hf:clip", "hf:convnext"])
def test_activations_that_are_computed_again_give_the_same_gradients(name: str, tmp_path: Path) -> None:
    """In the blocks that `freeze` counts, whatever the library calls them."""
    found, calls = [], []
    for again in (False, True):
        encoder = made(name, tmp_path / "model", text=False, lora=LORA)
        assert isinstance(encoder, PictureEncoder)
        if again:
            checkpoint_activations(encoder)
        move(encoder)
        encoder.eval()  # no stochastic depth
        blocks = blocks_of(encoder)
        for block in blocks:
            block.training = True
        layer = next(module for module in blocks[-1].modules() if isinstance(module, LoraLayer))
        layer.register_forward_pre_hook(lambda *_: calls.append("again"))
        features = shown_to(encoder)()
        (features * torch.linspace(-1, 1, features.shape[1]).exp()).sum().backward()
        found.append({n: p.grad for n, p in encoder.named_parameters() if p.requires_grad})
    assert len(calls) == 1 + 2
    torch.testing.assert_close(found[1], found[0])


# --- a run ---

ADAPTED = [
    "train.epochs=2", "data.samples_per_epoch=12", "encoders.text.name=tiny:32x2",
    "encoders.text.lora={rank: 4, dropout: 0.1}",
    "encoders.picture.lora.rank=2", "encoders.picture.batch_norm=batch", "train.accumulate=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("cards"), ADAPTED)


@pytest.fixture(scope="module")
def trained(run: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, Path]:
    """The loop after two epochs, and its run's folder with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    return two_epochs(run, folder), folder


def test_a_checkpoint_holds_the_adapters_and_what_comes_after_the_encoders(trained: tuple[Loop, Path]) -> None:
    loop, folder = trained
    saved = load_file(folder / "checkpoint_2" / "model" / "model.safetensors")
    of_encoders = {name for name in saved if "_encoder." in name}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(".lora_" in name or name.endswith(statistics) for name in of_encoders)
    assert any(name.startswith("text_encoder.") for name in of_encoders)
    once = load_file(folder / "frozen.safetensors")
    assert set(saved) | set(once) == set(loop.network.state_dict())
    first = load_file(folder / "checkpoint_1" / "model" / "model.safetensors")
    moved = {name for name in of_encoders if not torch.equal(first[name], saved[name])}
    assert moved == {name for name in of_encoders if ".lora_" in name}


def test_a_resumed_run_gives_the_same_numbers(run: Prepared, trained: tuple[Loop, Path]) -> None:
    straight, resumed = make_loop(run), make_loop(run)
    with torch.no_grad():
        for parameter in resumed.network.parameters():  # as of a hub that has other weights today
            parameter.add_(1)
    wanted = [straight.run_epoch()[0] for _ in range(2)][-1]
    resumed.load(trained[1] / "checkpoint_1")
    found, _ = resumed.run_epoch()
    same = {name for name in wanted if not name.startswith(("time/", "speed/"))}
    assert {name: found[name] for name in same} == {name: wanted[name] for name in same}
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def probabilities(network: M2CAN, run: Prepared) -> np.ndarray:
    return Predictor(network, run.card, torch.device("cpu")).predict(SHOWN, picture_of(run)).probs


def picture_of(run: Prepared) -> list[list[str]]:
    file = next(images for images in run.corpus.table["images"].to_pylist() if images)
    return [file[:1], file[:1]]


def test_checkpoints_predict_and_are_registered_with_plain_weights(
    run: Prepared, trained: tuple[Loop, Path], tmp_path: Path
) -> None:
    again = make_loop(run)
    again.load(trained[1] / "checkpoint_2")
    wanted = probabilities(again.network, run)
    bundle = trained[1] / "checkpoint_2" / "model"
    found = Predictor.load(trained[1] / "checkpoint_2")
    np.testing.assert_allclose(found.predict(SHOWN, picture_of(run)).probs, wanted, atol=1e-5)
    assert not any("lora" in name for name in found.network.state_dict())

    save(tmp_path / "model", ModelToLog(bundle, "m2can-adapted"))
    registered = tmp_path / "model" / "artifacts" / "model"
    names = set(load_file(registered / "model.safetensors"))
    plain = build_network(run.recipe.without_adapters(), run.card.text_config, 3, load_weights=False)
    assert names == set(plain.state_dict())
    assert np.array_equal(Predictor.load(registered).predict(SHOWN, picture_of(run)).probs,
                          found.predict(SHOWN, picture_of(run)).probs)  # fmt: skip
    card = load_card(registered)
    assert card.recipe.encoders.adapters == {}
    assert card.merged_adapters is not None
    assert card.merged_adapters["text"] == {"rank": 4, "alpha": 16.0, "dropout": 0.1, "targets": None}
    assert "peft" not in (tmp_path / "model" / "requirements.txt").read_text()
    with complete_model(registered) as same:
        assert same == registered


def test_altered_weights_of_the_tower_are_refused(run: Prepared, trained: tuple[Loop, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained[1], folder)
    weights = load_file(folder / "frozen.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "frozen.safetensors")
    for read in (make_loop(run).load, Predictor.load):
        with pytest.raises(InputError, match=r"frozen\.safetensors: is truncated or altered"):
            read(folder / "checkpoint_2")


def test_another_run_starts_from_what_was_trained_with_adapters(
    run: Prepared, trained: tuple[Loop, Path], tmp_path: Path
) -> None:
    """The merged weights, whether the other run has adapters, which begin anew, or none."""
    start = f"train.start_from={trained[1] / 'checkpoint_2'}"
    wanted = Predictor.load(trained[1] / "checkpoint_2").network.state_dict()
    for settings in (["encoders.text.name=tiny:32x2"], ADAPTED):
        other = prepared_run(tmp_path, [start, *settings])
        assert other.start is not None
        loop = make_loop(other)
        loop.network.load_state_dict(other.start.weights(other.taken), strict=False)
        merged = loop.network.state_dict()
        found = {name.replace(".base_layer.", "."): x for name, x in merged.items() if ".lora_" not in name}
        assert set(found) == set(wanted)
        for name, x in wanted.items():
            assert torch.equal(found[name], x), name
        assert not any("lora_A" in name for name in other.taken)


def test_both_towers_of_a_dual_encoder(tmp_path: Path) -> None:
    """The recipe of docs/encoders.md on the generated data, with a small CLIP in the place of the large one."""
    folder = tmp_path / "clip"
    write_clip(folder)
    documented = next(block for block in blocks(ROOT / "docs" / "encoders.md") if block.title == "clip-lora.yaml")
    stated = yaml.safe_load(documented.body)
    encoders = stated["encoders"]
    assert make_recipe(stated).encoders.text.name == make_recipe(stated).encoders.both == encoders["both"]
    recipe = small_recipe(tmp_path, [
        f"encoders.both={folder}", f"encoders.text.name={folder}", f"encoders.picture.name=hf:{folder}",
        "data.pictures.resize=null", "data.pictures.crop=null", "data.texts.max_tokens=null",
        f"encoders.text.lora={json.dumps(encoders['text']['lora'])}",
        f"encoders.picture.lora={json.dumps(encoders['picture']['lora'])}",
        "optimizer.lr.encoders=1e-3", "optimizer.layer_decay=0.8", "data.samples_per_epoch=6",
    ])  # fmt: skip
    run = prepare(recipe)
    loop = make_loop(run)
    trained = [name for name, p in loop.network.named_parameters() if p.requires_grad and "_encoder." in name]
    assert len(trained) == 2 * 2 * 2 * 2  # towers, layers, targets, matrices
    rates = {group["name"]: group["base_lr"] for group in loop.parts.optimizers["network"].param_groups}
    assert {name: rate for name, rate in rates.items() if "encoder" in name} == pytest.approx({
        "text_encoder.1": 8e-4, "text_encoder.2": 1e-3, "picture_encoder.1": 8e-4, "picture_encoder.2": 1e-3,
    })  # fmt: skip
    before = {name: x.clone() for name, x in loop.network.state_dict().items()}
    loop.run_epoch()
    changed = {name for name, x in loop.network.state_dict().items() if not torch.equal(x, before[name])}
    assert set(trained) <= changed
    assert not any("_encoder." in name and ".lora_" not in name for name in changed)
