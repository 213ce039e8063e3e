"""How many operations a step asks for: on a GPU each of them is a launch, and small steps consist of little else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_parts import QUICK, Size, make_labels, make_network, make_rows, make_step, recipe_of
from tests.trainers.m2can.one_call_attention import use_one_call
from trainers.compute.device_batches import to_batch
from trainers.m2can.batch import Batch
from trainers.step.step import Step

CPU = torch.device("cpu")
# ResNet-50 and BERT-base in the number of their layers; their sizes are the smallest.
USUAL = Size("torchvision:resnet50", 64, 64, 12, 500, 2)
COPIES = ("_to_copy", "clone", "copy_", "_foreach_copy_")
# What makes no kernel: views, and memory that is not filled.
_VIEWS = ["view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze"]
_PARTS = ["select", "slice", "split", "split_with_sizes", "unbind", "as_strided", "diagonal", "detach", "alias"]
_EMPTY = ["empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"]
_FREE = frozenset([*_VIEWS, *_PARTS, *_EMPTY, "_record_function_enter_new", "_record_function_exit"])


class Calls(TorchDispatchMode):
    """Counts ATen's calls, and notes what each cast of an activation takes and gives. Convolutions give zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.casts: Counter[tuple[torch.dtype, torch.dtype, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # Convolutions in half precision take a CPU minutes: zeros of the right shape are enough to count calls.
        if name == "convolution":
            shaped = func(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args))
            out = torch.zeros_like(shaped, device="cpu")
        elif name == "convolution_backward":
            out = tuple(torch.zeros_like(x) if asked else None for x, asked in zip(args[1:4], args[-1], strict=True))
        else:
            out = func(*args, **(kwargs or {}))
        if name not in _FREE:
            self.found[name] += 1
        if name == "_to_copy" and isinstance(out, torch.Tensor) and out.dim() > 2:
            self.casts[args[0].dtype, out.dtype, tuple(out.shape)] += 1
        return out

    @property
    def total(self) -> int:
        return sum(self.found.values())


def made(size: Size, preset: str, *overrides: str) -> tuple[Step, Batch]:
    recipe = recipe_of(size, preset, *overrides)
    step = make_step(make_network(size, recipe), recipe, CPU)
    batch = to_batch(make_rows(size, 2, size.rows), make_labels(size), device=CPU, dtype=torch.float32)
    return step, batch


def calls_of(size: Size, preset: str, *overrides: str) -> Calls:
    step, batch = made(size, preset, *overrides)
    with Calls():
        step(batch)  # the optimizer makes its state
    with Calls() as calls:
        step(batch)
    return calls


@pytest.mark.parametrize("preset", ["recommended", "published"])
def test_more_rows_make_no_more_calls(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    use_one_call(monkeypatch)
    few, many = (
        calls_of(replace(QUICK, batch=n, pixels=16, tokens=20), preset, "train.precision=bf16") for n in (8, 64)
    )
    assert few.found == many.found


@pytest.mark.parametrize(
    ("preset", "most", "most_copies"),
    [("recommended", 1400, 60), pytest.param("published", 3500, 120, marks=pytest.mark.slow)],
)
def test_a_step_of_the_usual_encoders(
    monkeypatch: pytest.MonkeyPatch, preset: str, most: int, most_copies: int
) -> None:
    use_one_call(monkeypatch)
    calls = calls_of(USUAL, preset, "train.precision=bf16")
    passes = 2 if preset == "published" else 1
    assert calls.total <= most
    assert sum(calls.found[name] for name in COPIES) <= most_copies
    assert calls.found["packed_attention"] == calls.found["packed_attention_backward"] == USUAL.layers * passes
    # The embeddings' gradient is the only activation that is taken from half precision to float32.
    back = [n for (given, made, _), n in calls.casts.items() if (given, made) == (torch.bfloat16, torch.float32)]
    assert back == [passes]


def test_half_precision_is_float32_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_call(monkeypatch)
    gradients, terms = [], []
    for precision in ("fp32", "bf16"):
        step, batch = made(replace(QUICK, layers=2), "recommended", f"train.precision={precision}")
        terms.append({name: float(x) for name, x in step(batch)["second"].items()})
        gradients.append(torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None]))
        assert gradients[-1].dtype == torch.float32
    assert terms[1] == pytest.approx(terms[0], rel=0.03, abs=1e-3)
    single, half = gradients
    assert float((half - single).norm() / single.norm()) < 0.1
