"""Which batch size a dry run advises, with memory that is made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

from services.cli.commands.train import batch_size_lines
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.recipe import apply_override, make_recipe
from trainers.worker.batch_sizes import SIZES, SPARE, Tried, find_batch_sizes, rate_factor, search, to_take

FIXED, SAMPLE = 1000.0, 10.0  # bytes


def bytes_of(size: int) -> float:
    """Weights, gradients and state; a part for each sample."""
    return FIXED + SAMPLE * size


def tried_with(limit: float, own: int = 8) -> tuple[list[int], int | None]:
    asked: list[int] = []

    def measure(size: int) -> Tried:
        assert bytes_of(size) <= limit  # a GPU would be out of memory
        asked.append(size)
        return Tried(size, 100.0, bytes_of(size))

    tried, largest = search(list(SIZES), limit, [(0, FIXED), (own, bytes_of(own))], measure)
    assert [one.size for one in tried] == asked
    return asked, largest


@pytest.mark.parametrize(
    ("fits", "asked", "largest"),
    [
        (1000, [8, 16, 32, 64, 128], 1000),
        (100, [8, 16, 32, 64], 100),
        (33, [8, 16, 32], 33),
        (8, [8], 8),
    ],
)
def test_what_fits_is_found_without_trying_more(fits: int, asked: list[int], largest: int) -> None:
    assert tried_with(bytes_of(fits)) == (asked, largest)


def test_nothing_larger_than_what_is_known_to_fit_is_tried() -> None:
    assert tried_with(bytes_of(4), own=4) == ([], None)


def test_the_one_to_take() -> None:
    speeds = {8: 200.0, 16: 380.0, 32: 700.0, 64: 860.0, 128: 900.0}
    assert to_take([Tried(size, speed, 0.0) for size, speed in speeds.items()]).size == 64
    assert rate_factor(64, 16, "adam") == 2
    assert rate_factor(64, 16, "sgd") == 4
    assert rate_factor(8, 8, "adamw") == 1


class Memory:
    """Of a GPU that is made up: as `bytes_of` has it, with room for 20 samples a domain."""

    def __init__(self) -> None:
        self.size, self.sizes = 4, list[int]()

    def start(self) -> None:
        self.sizes.append(self.size)

    def held(self) -> float:
        return FIXED

    def peak(self) -> float:
        return bytes_of(self.size)

    def available(self) -> float:
        return bytes_of(20) / (1 - SPARE)


def test_steps_of_each_size_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_run(tmp_path, ["train.batch_size=4"])
    loop, memory = make_loop(prepared), Memory()
    run_step, taken = loop.run_step, list[int]()

    def step(slice_: Any, batch: Any) -> Any:
        memory.size = slice_.global_batch
        taken.append(batch.size)
        return run_step(slice_, batch)

    monkeypatch.setattr(loop, "run_step", step)
    pictures = pc.list_value_length(prepared.corpus.table["images"]).to_numpy()
    tried, largest = find_batch_sizes(loop, pictures, memory)  # type: ignore[arg-type]
    assert taken == [8] * 4 + [16] * 4
    assert [(one.size, one.memory) for one in tried] == [(size, bytes_of(size)) for size in (8, 16)]
    assert largest == 20
    assert all(one.rows_per_s > 0 for one in tried)
    assert all(bool(torch.isfinite(p).all()) for p in loop.network.parameters())


def lines(tried: list[Tried] | None, largest: int | None, *overrides: str) -> list[str]:
    tree: dict[str, Any] = {"preset": "recommended", "data": {"sources": ["a"], "target": "b"}}
    for override in overrides:
        apply_override(tree, override)
    found: Any = SimpleNamespace(batch_sizes=tried, largest_batch_size=largest)
    return batch_size_lines(found, make_recipe(tree))


def test_what_is_said() -> None:
    tried = [Tried(size, speed, 0.0) for size, speed in {8: 200.0, 16: 390.0, 32: 1480.0, 64: 1500.0}.items()]
    assert lines(tried, 310, "train.batch_size=8") == [
        "batch size   rows/s at 8: 200, 16: 390, 32: 1,480, 64: 1,500; about 310 fit into memory",
        "             take train.batch_size=32 and every rate of optimizer.lr × 2",
    ]
    assert lines(tried, 310, "train.batch_size=32")[1] == "             take train.batch_size=32, as it is"
    assert lines(tried, 310, "train.batch_size=8", "optimizer.type=sgd")[1].endswith("× 4")
    assert lines(None, None) == ["batch size   not tried: only a GPU is asked for the one to take"]
