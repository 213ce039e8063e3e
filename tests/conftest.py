"""What all tests share: one Ray instance, one thread, the same examples of hypothesis each time, on a busy machine too."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads its token once a process: all clusters of a test session share this one, and none is written to the home folder.
os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray instance for the whole session."""
    import ray

    from trainers.cluster.local_cluster import start_own_ray

    start_own_ray(num_cpus=4, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
