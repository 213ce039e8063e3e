"""Who may do how much on the control plane, where paths may lead, and what was done."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets_manifest.errors import InputError
from services.web.http import Problem
from trainers.recipe.recipe import Recipe


class RateLimit:
    """A bucket of `burst` requests for everybody, refilled with `per_second`; the clock is handed in for tests."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, who: str) -> None:
        """Raises Problem: 429, with the seconds until there is another."""
        now = self._clock()
        with self._lock:
            left, then = self._buckets.get(who, (float(self._burst), now))
            left = min(self._burst, left + (now - then) * self._rate)
            if left < 1:
                self._buckets[who] = (left, now)
                wait = max(1, round((1 - left) / self._rate))
                raise Problem(429, f"too many requests; try again in {wait} s", {"Retry-After": str(wait)})
            self._buckets[who] = (left - 1, now)
            if len(self._buckets) > 10_000:  # callers come and go; full buckets need no memory
                full = [key for key, (some, t) in self._buckets.items() if some + (now - t) * self._rate >= self._burst]
                for key in full:
                    del self._buckets[key]


class AuditLog:
    """One JSON line for every request: who, what, how it ended. Never a body, a token or a query."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))

    def write(self, **content: Any) -> None:
        if self._file is None:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        line = json.dumps({"time": stamp, **content}) + "\n"
        with self._lock, self._file.open("a", encoding="utf-8") as stream:
            stream.write(line)


def confine(recipe: Recipe, roots: list[Path], tracking_uri: str) -> None:
    """Refuse a recipe from outside that reads or writes outside of `roots`, or tracks elsewhere than this service.

    Raises:
        InputError: names the field.
    """
    data, text, picture = recipe.data, recipe.encoders.text, recipe.encoders.picture
    paths = [(f"data.sources.{n}", path) for n, path in enumerate(data.sources)]
    paths += [("data.target", data.target), ("run.storage", recipe.run.storage)]
    weights = [("encoders.text.weights", text.weights), ("encoders.picture.weights", picture.weights)]
    paths += [(field, path) for field, path in weights if "/" in path or path.endswith((".safetensors", ".pt", ".pth"))]
    if text.name.startswith(("/", ".", "~")):
        paths.append(("encoders.text.name", text.name))
    for field, path in paths:
        confine_path(field, path, roots)
    if recipe.tracking.uri not in (None, tracking_uri):
        raise InputError("is not this service's MLflow", field="tracking.uri", wanted="nothing: the service sets it")
    if recipe.cluster.address is not None:
        raise InputError("is set by the service", field="cluster.address", wanted="nothing")


def confine_path(field: str, path: str, roots: list[Path]) -> str:
    """The path, with links followed. Raises InputError: it is not absolute, or leads outside."""
    wanted = f"an absolute path below {' or '.join(map(str, roots))}"
    if "\0" in path or not path.startswith("/"):
        raise InputError("is not an absolute path", field=field, value=path, wanted=wanted)
    try:
        real = Path(os.path.realpath(path))
    except (OSError, ValueError):
        raise InputError("is not a path", field=field, value=path, wanted=wanted) from None
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise InputError("leads outside", field=field, value=path, wanted=wanted)
    return str(real)
