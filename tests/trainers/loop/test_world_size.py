"""The same global batch on 1, 2 and 4 workers (real processes on gloo) gives the same step.

Seven rows of each domain make uneven slices, pictures are ragged, and some workers have none. One start per world runs
all scenarios; the processes fork from a server that has imported torch once. The world of 4 is a slow test.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from tests.trainers.loop.global_step import Scenario, worker

FOUR = pytest.param(4, marks=pytest.mark.slow)
PICTURES_OF = {
    "per_sample": "ragged",
    "batch": "none at the end",
    "frozen": "none at the end",
}

ADAPTERS = ("encoders.text.lora.rank=3", "encoders.picture.lora.rank=2")

FIRST_STEP = [
    *(Scenario(s, t, mode, PICTURES_OF[mode]) for s, t, mode in product((1, 2, 3), (False, True), PICTURES_OF)),
    Scenario(2, True, "per_sample", "one each"),
    Scenario(2, True, "per_sample", "none at the end"),
    Scenario(2, True, "batch", "one each"),
]
TWENTY_STEPS = [
    *(Scenario(1, True, mode, "ragged", steps=20) for mode in PICTURES_OF),
    Scenario(1, True, "per_sample", "none at the end", steps=20, options=ADAPTERS),
]
SINGLE = [Scenario(2, True, mode, "ragged", "float32") for mode in PICTURES_OF]
PARTS = [
    Scenario(2, True, "per_sample", "none at the end", accumulate=3),
    Scenario(2, True, "frozen", "ragged", accumulate=2),
    Scenario(2, True, "batch", "ragged", accumulate=2, options=ADAPTERS),
]
OPTIONS = [
    Scenario(2, True, "frozen", options=("objective.moments=1",), accumulate=2),
    Scenario(2, True, "frozen", options=("objective.discriminators=mdan", "objective.imitation=1")),
    Scenario(2, True, "frozen", options=("objective.discriminators=cdan", "network.modalities=pictures")),
    Scenario(2, True, "frozen", options=("objective.discriminators=dann", "network.modalities=text")),
    Scenario(2, True, "frozen", options=("network.modality_dropout=0.1",), accumulate=2),
]
MISTAKE = Scenario(2, True, "batch", "ragged", local_statistics=True)
ALL = [
    *FIRST_STEP,
    *TWENTY_STEPS,
    *SINGLE,
    *PARTS,
    *OPTIONS,
    *(replace(scenario, accumulate=1) for scenario in PARTS[1:]),
    MISTAKE,
]
SECONDS = 300


def start(world_size: int, folder: Path) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["tests.trainers.loop.global_step", "transformers.models.bert", "peft"]
    )
    processes = mp.start_processes(
        worker, (world_size, ALL, folder), nprocs=world_size, join=False, start_method="forkserver"
    )
    until = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < until, f"{world_size} workers did not end within {SECONDS} s"
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()


class Found:
    """What each worker found for each scenario; a world starts when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.worlds: dict[int, list[dict[Scenario, dict[str, Any]]]] = {}

    def __getitem__(self, key: tuple[int, int, Scenario]) -> dict[str, Any]:
        world_size, rank, scenario = key
        if world_size not in self.worlds:
            start(world_size, self.folder)
            files = [self.folder / f"{world_size}-{rank}.pt" for rank in range(world_size)]
            self.worlds[world_size] = [dict(zip(ALL, torch.load(file), strict=True)) for file in files]
        return self.worlds[world_size][rank][scenario]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return Found(tmp_path_factory.mktemp("worlds"))


def disagreement(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest error relative to the tensor's largest element; tiny tensors count with a thousandth of the largest."""
    assert list(found) == list(wanted)
    largest = max(float(x.abs().max()) for x in wanted.values())
    assert largest > 0
    return max(
        float((found[name] - x).abs().max()) / max(float(x.abs().max()), 1e-3 * largest) for name, x in wanted.items()
    )


@pytest.mark.parametrize("scenario", [*FIRST_STEP, *TWENTY_STEPS, *SINGLE, *PARTS, *OPTIONS], ids=str)
@pytest.mark.parametrize("world_size", [2, FOUR])
def test_first_step(found: Found, world_size: int, scenario: Scenario) -> None:
    tolerance = 1e-9 if scenario.dtype == "float64" else 1e-4
    one = found[1, 0, scenario]
    # In float32 a weight is too coarse to tell its perturbation.
    kinds = ("gradients", "statistics", "perturbation")[: 3 if scenario.dtype == "float64" else 2]
    for other in (found[world_size, rank, scenario] for rank in range(world_size)):
        for what in kinds:
            assert disagreement(other[what], one[what]) < tolerance, what
        assert disagreement(other["terms"][0], one["terms"][0]) < tolerance
        assert other["counts"] == one["counts"]


@pytest.mark.parametrize("scenario", TWENTY_STEPS, ids=str)
@pytest.mark.parametrize("world_size", [2, FOUR])
def test_twenty_steps(found: Found, world_size: int, scenario: Scenario) -> None:
    one = found[1, 0, scenario]["terms"]
    assert len(one) == 20
    assert disagreement(one[18], one[0]) > 1e-2  # the same two batches in turn: the terms have moved
    for other in (found[world_size, rank, scenario] for rank in range(world_size)):
        assert max(disagreement(a, b) for a, b in zip(other["terms"], one, strict=True)) < 1e-6


@pytest.mark.parametrize("scenario", FIRST_STEP, ids=str)
def test_the_scenarios_hold_what_they_should(found: Found, scenario: Scenario) -> None:
    one = found[1, 0, scenario]
    terms = {name.split()[1] for name in one["terms"][0]} - {"total", "grad_norm"}
    assert terms == {"task", "cmcfa", "cdcfa", "cdafa"} | ({"mcc"} if scenario.target else set())
    pairs = scenario.domains * (scenario.domains - 1) // 2
    assert sum("discriminators" in name for name in one["gradients"]) == 2 * pairs
    length = sum(float(x.square().sum()) for x in one["perturbation"].values()) ** 0.5
    assert length == pytest.approx(0.05, rel=1e-6)
    calls = {"per_sample": None, "batch": 2, "frozen": 0}[scenario.batch_norm]
    if calls is None:
        owners = scenario.slice(0, 0, 7).picture_owner
        assert owners is not None
        calls = 2 * len(owners.unique())
    assert set(one["counts"].values()) == {calls}


def test_a_mistake_shows(found: Found) -> None:
    """Batch norm over each worker's own pictures is what plain data parallelism does: everything disagrees."""
    one = found[1, 0, MISTAKE]
    for what in ("gradients", "statistics"):
        assert disagreement(found[2, 0, MISTAKE][what], one[what]) > 1e-3


@pytest.mark.parametrize("scenario", PARTS, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, FOUR])
def test_a_step_in_parts_is_the_whole_step(found: Found, world_size: int, scenario: Scenario) -> None:
    """Gradients, statistics and terms, in-batch negatives and class confusion included."""
    whole = found[1, 0, replace(scenario, accumulate=1)]
    for rank in range(world_size):
        parts = found[world_size, rank, scenario]
        for what in ("gradients", "statistics", "perturbation"):
            assert disagreement(parts[what], whole[what]) < 1e-9, what
        assert disagreement(parts["terms"][0], whole["terms"][0]) < 1e-9
        assert parts["counts"] == whole["counts"]
