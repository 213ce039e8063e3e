"""A dry run measures real steps and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from tests.trainers.tiny_run import prepared_run
from trainers.cluster.dry_run import dry_run
from trainers.preflight.preparation import claim


@pytest.mark.slow
def test_a_dry_run_measures_and_leaves_nothing(tmp_path: Path, ray_cluster: None) -> None:
    run = prepared_run(
        tmp_path, ["cluster.workers=2", "checkpoint.keep=3", "train.eval_batch_size=16", "run.name=later"]
    )
    before = sorted(path for path in tmp_path.rglob("*"))
    found = dry_run(run)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (found.workers, found.device, found.precision, found.steps_per_epoch) == (2, "cpu", "fp32", 5)
    assert found.eval_batches == 3  # 30 + 3 · 12 rows over two workers in batches of 16
    assert found.steps >= 2
    assert 100 < found.memory_mib["process"] < 20_000
    assert found.epoch_s == pytest.approx(5 * found.step_s + 3 * found.eval_batch_s)
    assert found.step_s > 0
    assert 0.9 * run.checkpoint_bytes < found.checkpoint_bytes <= run.checkpoint_bytes
    assert (found.checkpoints, found.disk_bytes) == (5, 5 * found.checkpoint_bytes)
    assert (found.batch_sizes, found.largest_batch_size) == (None, None)  # on a CPU


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    claim(prepared_run(tmp_path, ["run.name=mine"]))
    with pytest.raises(InputError, match=r"run\.name"):
        dry_run(prepared_run(tmp_path, ["run.name=mine", "train.epochs=4"]))
