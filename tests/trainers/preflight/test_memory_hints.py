"""Memory that runs out ends a run with what to try; each setting named lowers what a step keeps."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train.v2.api.exceptions import WorkerGroupError

from datasets_manifest.stream.plan import StepSlice
from tests.trainers.preflight import out_of_memory
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.cluster.driver import train
from trainers.failures import RunFailed
from trainers.loop.observer import Observer
from trainers.preflight.memory_hints import ended_by_memory, hints, is_out_of_memory, settings, where_it_ran_out
from trainers.recipe import make_recipe


@pytest.mark.slow
def test_the_run_ends_with_the_settings_to_try(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.cluster.driver.train_worker", out_of_memory.gpu_full)
    run = prepared_run(tmp_path, ["run.name=full", "cluster.workers=2", "encoders.picture.batch_norm=per_sample"])
    with pytest.raises(RunFailed) as caught:
        train(run)
    assert re.match(r"out of memory, rank 1, memory of the process, peak \d.*: .*CUDA out of memory", str(caught.value))
    assert all(setting in str(caught.value) for setting, _ in settings(run.recipe))


def recipe_with(values: dict[str, dict[str, Any]]) -> Any:
    return make_recipe({"data": {"sources": ["a", "b"], "target": "c"}, **values})


def test_the_message_says_which_memory_its_peak_and_the_rows_of_a_step() -> None:
    recipe = recipe_with({"train": {"batch_size": 24, "accumulate": 2}, "cluster": {"workers": 3}})
    text = hints(recipe, 12_345_678, where_it_ran_out(MemoryError("no room\nfor an array"), 2))
    assert re.match(r"out of memory, rank 2, memory of the process, peak [\d.,]+ MB of [\d,]+ MB: MemoryError: no room$",
                    text.splitlines()[0])  # fmt: skip
    assert "take 12 MB of each worker" in text
    assert "4 rows × 3 domains × 2 views" in text


def test_settings_follow_from_the_recipe() -> None:
    def named(**values: Any) -> list[str]:
        return [setting for setting, _ in settings(recipe_with(values))]

    checkpointing = [f"encoders.activation_checkpointing={name}" for name in ("pictures", "text")]
    assert named(train={"batch_size": 8}) == [
        "train.accumulate=2",
        "train.batch_size=4",
        *checkpointing,
        "train.precision=bf16",
    ]
    assert named(train={"batch_size": 4, "accumulate": 4}) == [*checkpointing, "train.precision=bf16"]
    assert named(train={"batch_size": 4}, cluster={"workers": 4}) == [*checkpointing, "train.precision=bf16"]
    assert "train.precision=bf16" not in named(train={"precision": "fp16"})
    half_frozen = {"text": {"freeze": "all"}, "activation_checkpointing": "pictures"}
    assert not any("checkpointing" in name for name in named(encoders=half_frozen))
    once_more = named(encoders={"activation_checkpointing": "text"})
    assert "encoders.activation_checkpointing=both" in once_more
    needs = dict(settings(recipe_with({"encoders": {"picture": {"batch_norm": "batch"}}})))["train.accumulate=2"]
    assert "needs encoders.picture.batch_norm" in needs


def most_kept(run: Any) -> int:
    """The most bytes that autograd saves at a time in a step."""
    now, most = 0, 0

    class Kept:
        def __init__(self, x: torch.Tensor) -> None:
            self.tensor = x

    def free(size: int) -> None:
        nonlocal now
        now -= size

    def keep(x: torch.Tensor) -> Kept:
        nonlocal now, most
        kept = Kept(x)
        weakref.finalize(kept, free, x.nbytes)
        now += x.nbytes
        most = max(most, now)
        return kept

    class FirstStep(Observer):
        def step(self, slice_: StepSlice, plan: Any, passes: Any) -> None:
            raise StopIteration

    loop = make_loop(run, FirstStep())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor), pytest.raises(StopIteration):
        loop.run_epoch()
    return most


def test_every_setting_named_has_an_effect(tmp_path: Path) -> None:
    base = ["encoders.picture.batch_norm=per_sample", "encoders.text.name=tiny:32x3"]
    plain = prepared_run(tmp_path, base)
    before = most_kept(plain)
    for setting, _ in settings(plain.recipe):
        assert 0 < most_kept(prepared_run(tmp_path, [*base, setting])) < 0.95 * before, setting


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: …"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, told: bool) -> None:
    assert is_out_of_memory(error) is told
    assert (ended_by_memory(WorkerGroupError("a worker failed", {1: error})) is not None) is told
