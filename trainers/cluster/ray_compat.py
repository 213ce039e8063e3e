"""The private parts of Ray that this package uses, for want of a public call. A new release of Ray may move them."""

from __future__ import annotations

import warnings

import ray


def autoscaled_resources() -> dict[str, float]:
    """The most that an autoscaler may bring the cluster to, by resource; empty where there is none. Ray must be running.

    Warns:
        RuntimeWarning: this Ray has no such function, so that only nodes that are there count.
    """
    try:
        from ray._private.state import state

        most = state.get_max_resources_from_cluster_config()
    except (ImportError, AttributeError) as error:
        warnings.warn(
            f"Ray {ray.__version__} lacks ray._private.state.state.get_max_resources_from_cluster_config ({error}): "
            "nodes that an autoscaler may add are left out; install the Ray that pyproject.toml names",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
    return {name: float(amount) for name, amount in (most or {}).items()}
