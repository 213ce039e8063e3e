"""Half-precision copies of many weights at a time give what autocast gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainers.m2can.encoders import half_weights
from trainers.m2can.encoders.freezing import checkpoint_activations
from trainers.m2can.encoders.half_weights import HalfLayerNorm, HalfWeights
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet


def model() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)]
    return nn.Sequential(
        *convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 6, bias=False)
    )


def gradients(net: nn.Module, out: Tensor) -> list[Tensor | None]:
    net.zero_grad()
    out.float().square().sum().backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("group", [2**23, 20], ids=["one group", "a group for each layer"])
def test_it_is_autocast(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(half_weights, "_GROUP", group)
    net, x = model(), torch.randn(4, 3, 9, 9)
    halves = HalfWeights(net)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = net(x), halves.call(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
    for ours, theirs in zip(gradients(net, found), gradients(net, wanted), strict=True):
        assert ours is not None
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_without_autocast_it_is_the_model() -> None:
    net, x = model(), torch.randn(4, 3, 9, 9)
    assert torch.equal(HalfWeights(net).call(x), net(x))


def test_frozen_and_shared_weights() -> None:
    net, x = model(), torch.randn(4, 3, 9, 9)
    net[0].requires_grad_(False)
    net[6].weight = nn.Parameter(torch.randn(6, 6))
    net.append(nn.Linear(6, 6, bias=False))
    net[7].weight = net[6].weight
    halves = HalfWeights(net)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = halves.call(x), net(x)
    assert torch.equal(found, wanted)
    ours, theirs = gradients(net, found), gradients(net, wanted)
    assert ours[0] is ours[1] is None
    for mine, other in zip(ours[2:], theirs[2:], strict=True):
        torch.testing.assert_close(
            mine, other, rtol=2e-2, atol=1e-3
        )  # autocast adds the shared one's in half precision


def test_gradients_lie_in_memory_as_weights_do() -> None:
    net = model().to(memory_format=torch.channels_last)
    halves = HalfWeights(net)
    with torch.autocast("cpu", torch.bfloat16):
        out = halves.call(torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last))
    gradients(net, out)
    for p in net.parameters():
        assert p.grad is not None
        assert p.grad.stride() == p.stride()


def test_a_copy_of_a_network_casts_its_own_weights() -> None:
    halves = HalfWeights(model())
    other = copy.deepcopy(halves)
    with torch.no_grad():
        for p in other.model.parameters():
            p.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert other.call(torch.randn(2, 3, 9, 9)).eq(0).all()
        assert halves.call(torch.randn(2, 3, 9, 9)).ne(0).any()


def test_blocks_that_are_computed_again_cast_by_themselves() -> None:
    encoder = PictureEncoder(SmallResNet(4), 32, "frozen")
    assert encoder.half_weights.enabled
    checkpoint_activations(encoder)
    assert not encoder.half_weights.enabled


def test_layer_norm_stays_in_half_precision() -> None:
    norm = nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain = copy.deepcopy(norm)
    HalfWeights(norm)
    assert type(norm) is HalfLayerNorm
    x = torch.randn(5, 16)
    assert torch.equal(norm(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            found = norm(given)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.float(), plain(x), rtol=2e-2, atol=2e-2)
    assert norm.state_dict().keys() == plain.state_dict().keys()
