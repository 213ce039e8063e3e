"""Memory that runs out ends a run with what to try; the estimates are those of the recipe's own network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train.v2.api.exceptions import WorkerGroupError

from tests.trainers.cluster import out_of_memory
from tests.trainers.tiny_run import prepared_run
from trainers.cluster.driver import RunFailed, train
from trainers.cluster.memory_hints import ended_by_memory, is_out_of_memory, needs
from trainers.cluster.memory_hints import out_of_memory as advice

TWO = ["data.pictures.max_pictures=2"]  # as many as some postcards have
LESS = re.compile(r"^  (\S+)=\S+ .* ([\d.,]+) MB less", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "words"),
    [(out_of_memory.gpu_full, "CUDA out of memory"), (out_of_memory.process_full, "MemoryError")],
)
def test_the_run_ends_with_the_settings_to_try(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, worker: Callable[..., None], words: str
) -> None:
    monkeypatch.setattr("trainers.cluster.driver.train_worker", worker)
    run = prepared_run(tmp_path, ["run.name=full", "cluster.workers=2", "encoders.picture.batch_norm=per_sample", *TWO])
    with pytest.raises(RunFailed) as caught:
        train(run)
    assert re.match(rf"out of memory, rank 1: .*{words}", str(caught.value))
    assert {"train.accumulate", "data.pictures.max_pictures"} < {name for name, _ in LESS.findall(str(caught.value))}


def test_every_setting_named_has_an_effect(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, ["encoders.picture.batch_norm=per_sample", "encoders.text.layers=3", *TWO])
    found = LESS.findall(advice(run.card, run.corpus, "here"))
    assert [name for name, _ in found] == [
        "train.accumulate",
        "encoders.picture.activation_checkpointing",
        "encoders.text.activation_checkpointing",
        "train.precision",
        "data.pictures.max_pictures",
        "data.pictures.crop",
        "train.eval_batch_size",
        "data.kept_views",
    ]
    assert all(float(less.replace(",", "")) > 0 for _, less in found)
    fewer = prepared_run(tmp_path, ["data.pictures.max_pictures=16"])
    assert "max_pictures" not in advice(fewer.card, fewer.corpus, "here")  # no postcard has more than 8


def test_activations_are_counted_as_autograd_keeps_them(tmp_path: Path) -> None:
    """A stack of linear layers in doubles: what is kept is known."""
    run = prepared_run(
        tmp_path, ["encoders.text.layers=0", "train.precision=fp64", "encoders.picture.batch_norm=frozen"]
    )
    whole = needs(run.card, run.corpus)
    parts = needs(prepared_run(tmp_path, ["encoders.text.layers=0", "train.precision=fp64", "train.accumulate=3",
                                          "encoders.picture.batch_norm=frozen"]).card, run.corpus)  # fmt: skip
    single = needs(
        prepared_run(tmp_path, ["encoders.text.layers=0", "encoders.picture.batch_norm=frozen"]).card, run.corpus
    )
    assert whole.pictures == pytest.approx(3 * parts.pictures)
    # The indices that a pooling layer keeps are no wider in doubles.
    assert whole.pictures == pytest.approx(2 * single.pictures, rel=0.1)
    assert whole.weights == pytest.approx(2 * single.weights, rel=0.01)


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
