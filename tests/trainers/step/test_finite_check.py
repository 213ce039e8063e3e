"""A step that is not finite moves nothing; the host hears of it one step later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.step_parts import QUICK, make_labels, make_network, make_rows, make_step, recipe_of
from datasets_manifest.stream.plan import StepSlice
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.device_batches import to_batch
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.batch import Batch
from trainers.step.finite_check import NonFiniteLoss
from trainers.step.step import Step

CPU = torch.device("cpu")


def made(*overrides: str, preset: str = "recommended") -> Step:
    recipe = recipe_of(QUICK, preset, *overrides)
    return make_step(make_network(QUICK, recipe), recipe, CPU)


def batches() -> Iterator[Batch]:
    """Of rows that differ."""
    for seed in range(10):
        host = make_rows(QUICK, 2, QUICK.rows, seed)
        yield to_batch(host, make_labels(QUICK, seed), device=CPU, dtype=torch.float32)


def spoil(step: Step, *numbers: int, value: float = torch.nan) -> None:
    """Let the terms of some steps be `value`; with SAM the first pass stays well."""
    objective: Callable[..., dict[str, Tensor]] = step.objective

    def spoilt(outputs: Any, batch: Any, collective: Any, discriminators: Any) -> dict[str, Tensor]:
        terms = objective(outputs, batch, collective, discriminators)
        well = step.number not in numbers or discriminators is None
        return terms if well else {name: term * value for name, term in terms.items()}

    step.objective = spoilt  # type: ignore[assignment]


def state(step: Step) -> dict[str, Any]:
    """A copy of all that moves."""
    found: dict[str, Any] = {"number": step.number, "calls": step.discriminators.counts()}
    modules = {"network": step.network, "discriminators": step.discriminators}
    for name, module in modules.items():
        found |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    for number, optimizer in enumerate(step.optimizers):
        content = optimizer.state_dict()
        found |= {f"{number}.{n}.rate": group["lr"] for n, group in enumerate(content["param_groups"])}
        for key, entries in content["state"].items():
            found |= {f"{number}.{key}.{name}": value.clone() for name, value in entries.items()}
    return found


def require_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
        assert same, name


MODES = ["per_sample", "batch", "frozen"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", ["recommended", "published"])
def test_the_next_step_reports_it_and_nothing_has_moved(preset: str, mode: str, value: float) -> None:
    step, given = made(f"encoders.picture.batch_norm={mode}", preset=preset), batches()
    for _ in range(2):
        step(next(given))
    before = state(step)
    spoil(step, 2, value=value)
    step(next(given))
    with pytest.raises(NonFiniteLoss, match=r"step 2: loss or gradient is not finite \(.*(nan|inf)") as caught:
        step(next(given))  # a good one
    assert caught.value.number == 2
    require_equal(state(step), before)


@pytest.mark.parametrize("preset", ["recommended", "published"])
def test_check_reports_the_last_step(preset: str) -> None:
    step, given = made(preset=preset), batches()
    step(next(given))
    step.check()
    before = state(step)
    spoil(step, 1)
    step(next(given))
    with pytest.raises(NonFiniteLoss, match="step 1: "):
        step.check()
    require_equal(state(step), before)
    step.check()  # it is said once
    step(next(given))
    assert step.number == 2


@pytest.mark.parametrize("setting", ["optimizer.type=sgd", "optimizer.type=adadelta", "train.precision=fp16"])
def test_what_cannot_skip_a_step_waits_for_its_answer(setting: str) -> None:
    step, given = made(setting), batches()
    step._lags = step._lags and "fp16" not in setting  # make_step gives no loss scale
    step(next(given))
    before = state(step)
    spoil(step, 1)
    with pytest.raises(NonFiniteLoss, match="step 1: "):
        step(next(given))
    require_equal(state(step), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", ["recommended", "published"])
def test_steps_are_those_of_a_host_that_waits(preset: str, mode: str) -> None:
    found = []
    for lags in (True, False):
        step = made(f"encoders.picture.batch_norm={mode}", preset=preset)
        assert step._lags
        step._lags = lags
        terms = [step(batch)["second"]["total"] for batch, _ in zip(batches(), range(3), strict=False)]
        step.check()
        found.append(state(step) | {f"total {n}": term for n, term in enumerate(terms)})
    require_equal(*found)


class Told(Observer):
    """Notes rows that are reported; writes a checkpoint after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, list[StepSlice]()

    def not_finite(self, slice_: StepSlice) -> None:
        self.told.append(slice_)

    def between_steps(self, loop: Loop) -> None:
        if self.folder.is_dir():
            loop.save(self.folder / f"checkpoint-{loop.steps_done}", {})


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("number", [2, 4])
def test_its_rows_are_named_and_no_checkpoint_has_it(tmp_path: Path, number: int, saves: bool) -> None:
    observer = Told(tmp_path / "run")
    if saves:
        observer.folder.mkdir()
    loop = make_loop(prepared_run(tmp_path), observer)
    assert loop.steps_per_epoch == 5
    spoil(loop.step, number)
    wanted = loop.plan().worker_step(number, 0, 1)
    with pytest.raises(NonFiniteLoss, match=f"step {number}: "):
        loop.run_epoch()
    assert [told.step for told in observer.told] == [number]
    assert np.array_equal(observer.told[0].rows_DB, wanted.rows_DB)
    written = sorted(path.name for path in observer.folder.iterdir()) if saves else []
    assert written == ([f"checkpoint-{n + 1}" for n in range(number)] if saves else [])
