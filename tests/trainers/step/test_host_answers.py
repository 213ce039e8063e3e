"""A step must not wait for the device: a GPU's queue would run empty."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_parts import QUICK, make_network, make_rows, make_step, recipe_of
from trainers.compute.device_batches import to_batch

# What hands a number of a tensor to the host, or needs one to know the size of its result.
_ANSWERS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_unique2")


class Answers(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _ANSWERS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["per_sample", "batch", "frozen"])
@pytest.mark.parametrize("preset", ["published", "recommended"])
def test_a_step_waits_for_one_answer(preset: str, mode: str) -> None:
    recipe = recipe_of(QUICK, preset, f"encoders.picture.batch_norm={mode}")
    step = make_step(make_network(QUICK, recipe), recipe, torch.device("cpu"))
    labels_DB = torch.randint(0, 3, (3, QUICK.batch)).numpy()
    batch = to_batch(make_rows(QUICK, 2, labels_DB.size), labels_DB, device=torch.device("cpu"), dtype=torch.float32)
    step(batch)  # the optimizer makes its state
    with Answers() as answers:
        step(batch)
    assert dict(answers.found) == {"_local_scalar_dense": 1}


def test_an_answer_would_be_seen() -> None:
    with Answers() as answers:
        assert float(torch.ones(()).sum()) == 1
    assert answers.found["_local_scalar_dense"] == 1
