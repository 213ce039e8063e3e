"""The batch-norm modes against torch's own layer, called as the published code calls it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.m2can import made
from trainers.m2can.batch import Batch
from trainers.m2can.collective import Collective
from trainers.m2can.encoders.batch_norm import BatchNormMode, GroupedBatchNorm2d
from trainers.m2can.encoders.freezing import freeze
from trainers.m2can.encoders.picture import PictureEncoder, SmallResNet

# Pictures by view, domain, sample.
ONE_EACH = [[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]
RAGGED = [[[1, 3, 2], [2, 1, 1]], [[1, 3, 2], [2, 1, 1]]]
HOLES = [[[2, 0, 1], [0, 3, 1]], [[2, 0, 1], [1, 3, 0]]]  # a view may lose what the other has
EMPTY = [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
MODES: list[BatchNormMode] = ["per_sample", "batch", "frozen"]

Counts = Sequence[Sequence[Sequence[int]]]


class Backbone(nn.Module):
    """Two normalisations with a nonlinearity between and after them, so that gradients do not vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn1(self.conv1(x)))
        return torch.sin(self.bn2(self.conv2(x))).square().mean((2, 3))


@pytest.fixture
def backbone() -> nn.Module:
    torch.manual_seed(1)
    model = Backbone().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def encoder_of(model: nn.Module, mode: BatchNormMode, width: int = 5) -> PictureEncoder:
    return PictureEncoder(copy.deepcopy(model), width, mode).train()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.named_buffers()}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def one_call_a_sample(model: nn.Module, batch: Batch) -> Tensor:
    """[N, K] in the published order of calls: domain → weak samples → strong samples."""
    assert batch.picture_owner is not None
    rows: dict[int, Tensor] = {}
    for d in range(batch.num_domains):
        for v in range(batch.num_views):
            for b in range(batch.size):
                n = (v * batch.num_domains + d) * batch.size + b
                mine = batch.pictures[batch.picture_owner == n]
                rows[n] = model(mine).mean(0) if len(mine) else torch.zeros(5, dtype=torch.float64)
    return torch.stack([rows[n] for n in range(batch.num_rows)])


def pull(features: Tensor, batch: Batch, model: nn.Module) -> list[Tensor]:
    """Gradients of an uneven sum of the features for the pictures and every parameter."""
    weight = torch.linspace(-1, 2, features.numel(), dtype=torch.float64).view_as(features)
    return list(torch.autograd.grad((features * weight).sum(), [batch.pictures, *model.parameters()]))


@pytest.mark.parametrize("counts", [ONE_EACH, RAGGED, HOLES], ids=["one each", "ragged", "holes"])
def test_per_sample_is_one_call_a_sample(backbone: nn.Module, counts: Counts) -> None:
    encoder, batch = encoder_of(backbone, "per_sample"), made.pictured(counts)
    for _ in range(2):  # the averages move on from where they are
        found, wanted = encoder(batch.pictures, batch), one_call_a_sample(backbone, batch)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
        for ours, theirs in zip(pull(found, batch, encoder), pull(wanted, batch, backbone), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        encoder.groups.commit()
        close(statistics(encoder.model), statistics(backbone))
    assert encoder.groups.one_picture_each == (counts is ONE_EACH)


def test_per_sample_order_matters(backbone: nn.Module) -> None:
    """The same pictures in another order leave other averages: the comparison above can fail."""
    batch = made.pictured(RAGGED)
    found = []
    for pictures in (batch.pictures, batch.pictures.flip(0)):
        encoder = encoder_of(backbone, "per_sample")
        encoder(pictures, made.pictured(RAGGED))
        encoder.groups.commit()
        found.append(encoder.model.bn1.running_mean)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_per_sample_of_a_resnet_with_a_single_pixel_left() -> None:
    torch.manual_seed(0)
    model = SmallResNet(4).double()
    encoder, batch = encoder_of(model, "per_sample", 32), made.pictured(ONE_EACH, pixels=16)
    assert encoder(batch.pictures, batch).isfinite().all()
    encoder.groups.commit()
    assert all(x.isfinite().all() for x in statistics(encoder).values())


class TwoWorkers(Collective):
    """Says two and exchanges nothing: takes the path of many workers on one."""

    world_size = 2


@pytest.mark.parametrize("collective", [Collective(), TwoWorkers()], ids=["fast path", "general path"])
@pytest.mark.parametrize("counts", [ONE_EACH, RAGGED, HOLES], ids=["one each", "ragged", "holes"])
def test_batch_is_torchs_own(backbone: nn.Module, counts: Counts, collective: Collective) -> None:
    encoder, batch = encoder_of(backbone, "batch"), made.pictured(counts)
    encoder.groups.collective = collective
    found = encoder(batch.pictures, batch)
    encoder.groups.commit()
    assert batch.picture_owner is not None
    features = backbone(batch.pictures)
    rows = [features[batch.picture_owner == n] for n in range(batch.num_rows)]
    wanted = torch.stack([mine.mean(0) if len(mine) else torch.zeros(5, dtype=torch.float64) for mine in rows])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    for ours, theirs in zip(pull(found, batch, encoder), pull(wanted, batch, backbone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    close(statistics(encoder.model), statistics(backbone))


class Copies(TorchDispatchMode):
    """The float32 copies of half-precision activations, by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copied = func.overloadpacket.__name__ == "_to_copy" and args[0].dim() == 4
        if copied and (args[0].dtype, out.dtype) == (torch.bfloat16, torch.float32):
            self.found.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("collective", [Collective(), TwoWorkers()], ids=["fast path", "general path"])
@pytest.mark.parametrize("counts", [ONE_EACH, RAGGED, HOLES], ids=["one each", "ragged", "holes"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_keeps_float32_statistics_and_copies_no_activation(
    mode: BatchNormMode, counts: Counts, collective: Collective, channels_last: bool
) -> None:
    """The pictures lie far from zero, where bfloat16 has few digits left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(model[0].weight, 1, 0.3)
    batch = made.pictured(counts)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    half = (8 + batch.pictures.detach()).bfloat16().contiguous(memory_format=layout)
    pull = torch.randn(half.shape).contiguous(memory_format=layout)
    found = []
    for x in (half.float(), half):
        encoder = encoder_of(model, mode, 3)
        encoder.groups.collective = collective
        if mode != "frozen":
            encoder.groups.begin(batch)
        x = x.clone().requires_grad_()
        with Copies() as copies:
            y = encoder.model(x)
            y.backward(pull.to(y.dtype))
        assert copies.found == []
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=layout)
        encoder.groups.commit()
        assert x.grad is not None
        found.append((y.float(), x.grad.float(), statistics(encoder.model)))
    (y, gradient, wanted), (y_half, gradient_half, kept) = found
    real = (batch.picture_owner != batch.num_rows) if batch.picture_owner is not None else slice(None)
    assert (y - y_half)[real].abs().max() < 0.04 * y[real].abs().max()
    assert (gradient - gradient_half)[real].norm() < 0.02 * gradient[real].norm()
    for name in wanted:
        torch.testing.assert_close(kept[name], wanted[name], rtol=1e-3, atol=1e-4)


def test_frozen_uses_the_averages_and_leaves_them(backbone: nn.Module) -> None:
    encoder, batch = encoder_of(backbone, "frozen"), made.pictured(RAGGED)
    before = statistics(encoder.model)
    found = encoder(batch.pictures, batch)
    encoder.groups.commit()
    torch.testing.assert_close(found, encoder.eval()(batch.pictures, batch))
    assert all(torch.equal(x, before[name]) for name, x in statistics(encoder.model).items())


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_any_picture(backbone: nn.Module, mode: BatchNormMode) -> None:
    encoder, batch = encoder_of(backbone, mode), made.pictured(EMPTY)
    assert batch.picture_owner is not None
    assert batch.picture_owner.tolist() == [batch.num_rows]
    before = statistics(encoder.model)
    features = encoder(batch.pictures, batch)
    grads = pull(features, batch, encoder)
    encoder.groups.commit()
    assert features.shape == (12, 5)
    assert not features.any()
    assert not any(g.any() for g in grads)
    assert all(torch.equal(x, before[name]) for name, x in statistics(encoder.model).items())


@pytest.mark.parametrize("mode", MODES)
def test_prediction_uses_the_averages(backbone: nn.Module, mode: BatchNormMode) -> None:
    encoder, batch = encoder_of(backbone, mode).eval(), made.pictured(HOLES)
    torch.testing.assert_close(encoder(batch.pictures, batch), one_call_a_sample(backbone.eval(), batch))


@pytest.mark.parametrize("mode", MODES)
def test_conversion_keeps_names_and_values(mode: BatchNormMode) -> None:
    model = SmallResNet(4)
    encoder = encoder_of(model, mode, 32)
    state = encoder.model.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    wanted = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(encoder.groups.layers) == sum(isinstance(m, GroupedBatchNorm2d) for m in encoder.modules()) == wanted
    model.load_state_dict(state)


class NormAndActivation(nn.BatchNorm2d):
    """As in timm: the layer also holds what follows it."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def test_conversion_keeps_the_activation_inside_a_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormAndActivation(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    batch = made.pictured(RAGGED)
    for train in (True, False):
        encoder = encoder_of(model, "batch", 4).train(train)
        encoder(batch.pictures, batch)
        wanted = copy.deepcopy(model).train(train)(batch.pictures)
        torch.testing.assert_close(encoder.model(batch.pictures), wanted)


@pytest.mark.parametrize("mode", ["per_sample", "batch"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_frozen_blocks_have_no_gradient_and_still_statistics(mode: BatchNormMode, blocks: int) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(SmallResNet(4).double(), mode, 32)
    freeze(encoder, blocks)
    batch = made.pictured(RAGGED, pixels=24)
    before = statistics(encoder.model)
    encoder(batch.pictures, batch).square().sum().backward()
    encoder.groups.commit()
    for name, p in encoder.model.named_parameters():
        assert (p.grad is None) == (int(name.split(".")[0]) < blocks), name
    for name, x in statistics(encoder.model).items():
        assert torch.equal(x, before[name]) == (int(name.split(".")[0]) < blocks), name


def test_freeze_all(backbone: nn.Module) -> None:
    encoder = encoder_of(backbone, "per_sample")
    freeze(encoder, "all")
    batch, before = made.pictured(RAGGED), statistics(encoder.model)
    encoder(batch.pictures, batch)
    encoder.groups.commit()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(x, before[name]) for name, x in statistics(encoder.model).items())
