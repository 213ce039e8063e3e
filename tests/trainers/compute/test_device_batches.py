"""What arrives on the device: normalised pictures in the encoder's type and layout."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_parts import QUICK, make_labels, make_rows
from datasets_manifest.stream.images import IMAGENET_MEAN, IMAGENET_STD, PictureViews
from trainers.compute.device_batches import PictureForm, normalise, to_batch

CPU = torch.device("cpu")
# What reads or writes every number of a picture; the rest makes views, empty memory or six constants.
_SMALL = 100


class LargeCalls(TorchDispatchMode):
    """Counts the calls that write more than a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        view = any(out_.alias_info is not None and not out_.alias_info.is_write for out_ in func._schema.returns)
        name = func.overloadpacket.__name__
        if not view and "empty" not in name and isinstance(out, torch.Tensor) and out.numel() > _SMALL:
            self.found[name] += 1
        return out


@pytest.fixture
def pixels() -> torch.Tensor:
    """Every byte in every channel."""
    return torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1).permute(0, 2, 1).reshape(2, 16, 16, 3).contiguous()


def by_hand(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_byte_is_normalised(pixels: torch.Tensor, dtype: torch.dtype, channels_last: bool) -> None:
    found, wanted = normalise(pixels, dtype, PictureViews(), channels_last), by_hand(pixels)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(found.double(), wanted, atol=4 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_is_float32_rounded_once(pixels: torch.Tensor, channels_last: bool) -> None:
    found = normalise(pixels, torch.bfloat16, PictureViews(), channels_last)
    single = normalise(pixels, torch.float32, PictureViews())
    assert torch.equal(found, single.bfloat16())  # what autocast makes of float32 pictures


@pytest.mark.parametrize(
    ("dtype", "channels_last"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)]
)
def test_one_operation_writes_the_pictures(pixels: torch.Tensor, dtype: torch.dtype, channels_last: bool) -> None:
    with LargeCalls() as calls:
        normalise(pixels, dtype, PictureViews(), channels_last)
    assert dict(calls.found) == {"addcmul": 1}


def test_a_batch_brings_its_counts_along() -> None:
    host = make_rows(QUICK, 2, QUICK.rows)
    batch = to_batch(host, make_labels(QUICK), device=CPU, dtype=torch.float32)
    assert batch.counts_on(CPU) is batch.sent_counts
    assert batch.sent_counts is not None
    assert np.array_equal(batch.sent_counts.numpy(), [1] * (2 * QUICK.rows) + [0])
    part = batch.split(2)[0]
    assert torch.equal(part.counts_on(CPU), part.pictures_of_rows())


def test_the_form_is_the_encoders() -> None:
    form = PictureForm(torch.bfloat16, channels_last=True)
    batch = to_batch(
        make_rows(QUICK, 2, QUICK.rows), make_labels(QUICK), device=CPU, dtype=torch.float32, pictures=form
    )
    assert batch.pictures.dtype == torch.bfloat16
    assert batch.pictures.is_contiguous(memory_format=torch.channels_last)
