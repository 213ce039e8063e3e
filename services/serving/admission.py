"""Which requests are let in, and for how long they may work."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from services.serving.limits import Limits
from services.web.problems import Problem
from services.web.rate_limit import RateLimit


class Admission:
    """Counts requests under way by caller. Belongs to one event loop.

    draining: once it is true, nothing new is let in: the service is about to end.
    """

    def __init__(self, limits: Limits) -> None:
        self.draining = False
        self._limits = limits
        self._under_way: Counter[str] = Counter()
        self._rate = RateLimit(limits.requests_per_s, max(1, round(10 * limits.requests_per_s)))

    @property
    def under_way(self) -> int:
        """Requests of all callers."""
        return self._under_way.total()

    def count(self, caller: str) -> None:
        """Count a request, let in or not. Raises Problem: 429, the caller sends too many a second."""
        self._rate.take(caller)

    @contextlib.contextmanager
    def admit(self, caller: str) -> Iterator[None]:
        """Let a request in for as long as the context lasts.

        Raises:
            Problem: 503 the service ends, 429 too many are under way.
        """
        self.require_open()
        limits = self._limits
        if self._under_way[caller] >= limits.in_flight or self.under_way >= limits.in_flight_of_all:
            most = min(limits.in_flight, limits.in_flight_of_all)
            raise Problem(429, f"{most} predictions are under way; try again", {"Retry-After": "1"})
        self._under_way[caller] += 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]

    def require_open(self) -> None:
        """Raises Problem: 503, the service ends."""
        if self.draining:
            raise Problem(503, "the service is about to end; try again", {"Retry-After": "5", "Connection": "close"})
