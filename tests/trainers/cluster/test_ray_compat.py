"""The private parts of Ray are where this release of Ray has them, and a Ray without them is told by name."""

from __future__ import annotations

import warnings

import pytest

from trainers.cluster import ray_compat


def test_this_ray_tells_what_an_autoscaler_may_add(ray_cluster: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fails where this release of Ray has moved the function
        assert ray_compat.autoscaled_resources() == {}


def test_a_ray_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.state import state

    monkeypatch.delattr(type(state), "get_max_resources_from_cluster_config")
    with pytest.warns(RuntimeWarning, match=r"Ray \d+\.\d+.*get_max_resources_from_cluster_config"):
        assert ray_compat.autoscaled_resources() == {}
