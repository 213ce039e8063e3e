"""A Ray cluster to work on: the one that is asked for, the one that runs here, or one that is started."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import ray

from datasets_manifest.errors import InputError

# Settings of Ray Train. On one machine nobody takes nodes away, so that no process needs to watch for it, and looking at
# the workers twice a second costs nothing.
LOCAL_TRAIN = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}


def start_ray(address: str | None) -> bool:
    """Join the cluster at `address`, the one that runs here, or start one; True if it was started.

    Without an address RAY_ADDRESS counts; `local` always starts one.

    Raises:
        InputError: no cluster answers there.
    """
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "configure_logging": False}
    place = _place(address)
    try:
        if place != "local":
            with contextlib.suppress(*([ConnectionError] if place == "auto" else [])):
                ray.init(address=place, **quiet)
                return False
        start_own_ray(**quiet)
    except ConnectionError as error:
        raise InputError(f"no Ray cluster answers ({error})", field="cluster.address", value=place) from None
    finally:
        hide_token()
    return True


def start_own_ray(**options: Any) -> None:
    """Start a Ray for this process alone; `options` are those of `ray.init`."""
    for name, value in LOCAL_TRAIN.items():
        os.environ.setdefault(name, value)
    ray.init("local", include_dashboard=False, **options)


def is_elsewhere(address: str | None) -> bool:
    """Whether `address` names a cluster that others may share."""
    return _place(address) not in ("auto", "local")


def _place(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "auto"


def hide_token() -> None:
    """Ray writes its token of authentication so that every user of the machine can read it."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        token.chmod(0o600)
