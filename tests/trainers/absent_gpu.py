"""A GPU that is not there: torch's fake tensors have its device, shapes and types, and no numbers.

What would fail on a GPU at its first use fails here too: tensors of two devices in one operation, a kernel that takes
other types, an answer that the host waits for. The backward pass is left out, because autograd asks the driver for a
stream; gradients come from nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import trainers.compute.precision
import trainers.m2can.batch
import trainers.m2can.encoders.packing
import trainers.m2can.network
from trainers.m2can.batch import Batch
from trainers.step.finite_check import Unchecked

GPU = torch.device("cuda", 0)
MODE = FakeTensorMode()
IN_HOST_MEMORY = ("text_lengths", "picture_counts", "missing_N2")


class HostArray:
    """A tensor in host memory as far as a step reads it; fake tensors have no numbers."""

    device = torch.device("cpu")

    def __init__(self, x: Tensor) -> None:
        self.array = x.numpy()

    def numpy(self) -> np.ndarray:
        return self.array


class WithoutDriver(TorchFunctionMode):
    """Does for fake tensors what torch's own code does only with a driver: brackets, `~`, copies, batch normalisation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is Tensor.contiguous:
            return torch.clone(args[0], **{"memory_format": torch.contiguous_format} | (kwargs or {}))
        if func is Tensor.__getitem__:
            return _taken(*args)
        if func is Tensor.__setitem__:
            place, value = _taken(*args[:2]), args[2]
            if isinstance(value, Tensor):
                assert value.device == place.device or value.dim() == 0, (value.device, place.device)
                assert torch.broadcast_shapes(value.shape, place.shape) == place.shape
            return None
        if func is F.batch_norm:
            assert all(x.device == args[0].device for x in args[1:5])
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _taken(x: Tensor, index: Any) -> Tensor:
    parts = index if isinstance(index, tuple) else (index,)
    given = sum(part is not None and part is not Ellipsis for part in parts)
    behind, at, tensors = x.dim() - given, 0, {}
    for part in parts:
        if part is Ellipsis:
            at += behind
        elif isinstance(part, int):
            x = x.select(at, part)
        elif part is None:
            x, at = x.unsqueeze(at), at + 1
        elif isinstance(part, slice):
            assert part.step is None
            x, at = x if part == slice(None) else torch.ops.aten.slice.Tensor(x, at, part.start, part.stop), at + 1
        else:
            tensors[at], at = part, at + 1
    return torch.ops.aten.index.Tensor(x, [tensors.get(n) for n in range(max(tensors) + 1)]) if tensors else x


def fake(x: Tensor) -> Tensor:
    """As large as `x`, of its type and layout, on the GPU."""
    with MODE:
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=GPU)


def move_there(module: nn.Module) -> None:
    for part in module.modules():
        for name, x in part._parameters.items():
            part._parameters[name] = None if x is None else nn.Parameter(fake(x), x.requires_grad)
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else fake(x)


def moved_there(batch: Batch) -> Batch:
    tensors = {f.name: x for f in fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}
    moved: dict[str, Any] = {name: HostArray(x) if name in IN_HOST_MEMORY else fake(x) for name, x in tensors.items()}
    return replace(batch, **moved)


class Event:
    """The device answers at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def pretend_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions by which torch and the trainer look for a GPU say that it is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(trainers.compute.precision, "_is_ampere", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None)
    monkeypatch.setattr(Unchecked, "was_finite", lambda unchecked: True)
    for module in (trainers.m2can.batch, trainers.m2can.encoders.packing, trainers.m2can.network):
        monkeypatch.setattr(module, "sent", lambda array, device: fake(torch.from_numpy(array)))


@contextmanager
def gradients_from_nowhere(monkeypatch: pytest.MonkeyPatch, *modules: nn.Module) -> Iterator[None]:
    """Inside, tensors that are made on the GPU are fake, and `backward` gives each parameter a gradient."""

    def backward(total: Tensor) -> None:
        assert total.shape == () and total.device == GPU and total.dtype == torch.float32
        for module in modules:
            for x in module.parameters():
                x.grad = torch.empty_like(x) if x.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    with MODE, torch.no_grad(), WithoutDriver():
        yield
