"""How many requests a caller may send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from services.web.problems import Problem


class RateLimit:
    """A token bucket a caller: `burst` requests, refilled with `per_second`. `clock`: seconds; tests pass their own."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> None:
        """Raises Problem: 429, with the seconds until the next request is allowed."""
        now = self._clock()
        with self._lock:
            left, updated = self._buckets.get(caller, (float(self._burst), now))
            left = min(self._burst, left + (now - updated) * self._rate)
            if left < 1:
                self._buckets[caller] = (left, now)
                wait = max(1, round((1 - left) / self._rate))
                raise Problem(429, f"too many requests; try again in {wait} s", {"Retry-After": str(wait)})
            self._buckets[caller] = (left - 1, now)
            if len(self._buckets) > 10_000:  # a bucket that is full again needs no memory
                refill = {key: some + (now - then) * self._rate for key, (some, then) in self._buckets.items()}
                self._buckets = {key: self._buckets[key] for key, some in refill.items() if some < self._burst}
