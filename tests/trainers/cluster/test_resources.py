"""What workers take of a cluster that is there, and of one that can grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from datasets_manifest.errors import InputError
from tests.trainers.tiny_run import small_recipe
from trainers.cluster import resources as cluster


def test_a_cluster_without_autoscaler_is_what_it_is(ray_cluster: None) -> None:
    assert cluster.autoscaled_resources() == {}
    assert cluster.most_resources() == ray.cluster_resources()


def test_workers_may_wait_for_nodes_that_an_autoscaler_adds(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, ["cluster.workers=4", "cluster.device=cuda", "cluster.cpus_per_worker=2"])
    with pytest.raises(InputError, match="each worker takes a GPU and the cluster has 0"):
        cluster.worker_resources(recipe)
    monkeypatch.setattr(cluster, "autoscaled_resources", lambda: {"CPU": 32.0, "GPU": 4.0})
    scaling = cluster.worker_resources(recipe)
    assert scaling.use_gpu and scaling.resources_per_worker == {"CPU": 2.0, "GPU": 1}
