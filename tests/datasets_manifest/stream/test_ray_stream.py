"""Ray Data gives the batches that one process makes, and begins at full width."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from datasets_manifest.stream import ray_stream as stream
from datasets_manifest.stream.encode import Encoding
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.ray_stream import CpuBudget, Stream
from tests.trainers.tiny_run import prepared_run
from trainers.model.device_batches import make_encoding


@pytest.mark.slow
def test_a_pipeline_gives_the_batches_of_one_process_and_knows_its_cpus_at_once(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared_run(tmp_path)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    batches = [np.arange(start, start + 5) for start in range(0, 30, 5)]
    asked_again = []

    class Watched(stream._Pace):
        def on_execution_step(self, executor: Any) -> None:
            unknown = not executor._resource_manager.get_global_limits().cpu
            super().on_execution_step(executor)
            if unknown:  # of its cached answer nothing is left
                asked_again.append(executor._resource_manager._global_limits_last_update_time == 0)

    monkeypatch.setattr(stream, "_Pace", Watched)
    ours = list(Stream(ray.put(run.corpus.table), CpuBudget(cpus=1)).evaluate(batches, encoding))
    wanted = list(LocalStream(run.corpus.table).evaluate(batches, encoding))
    assert len(ours) == len(wanted) == 6
    for one, other in zip(ours, wanted, strict=True):
        for name in ("tokens", "mask", "pictures", "owner", "rows"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert asked_again and all(asked_again)  # fails where Ray keeps its resources elsewhere


@pytest.mark.slow
def test_tasks_give_way_to_training(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run, encode = prepared_run(tmp_path), stream._encode

    def noting(index: pa.Table, table: ray.ObjectRef, encoding: Encoding) -> pa.Table:
        encoded = encode(index, table, encoding)
        (tmp_path / f"priority-{os.getpid()}").write_text(str(priority()))
        return encoded

    monkeypatch.setattr(stream, "_encode", noting)
    encoding = make_encoding(run.recipe, run.card.vocabulary)
    list(Stream(ray.put(run.corpus.table), CpuBudget(cpus=1)).evaluate([np.arange(30)], encoding))
    assert {file.read_text() for file in tmp_path.glob("priority-*")} == {"19"}
    trainer = ray.remote(num_cpus=0)(Trainer).remote()  # an actor never begins in a process that has run a task
    assert ray.get(trainer.priority.remote()) == priority() < 19


class Trainer:
    def priority(self) -> int:
        return priority()


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)
