"""Names and aliases → versions, without a request ever waiting for a registry that hangs."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError, first_line, without_password
from services.web.problems import Problem
from trainers.failures import is_absent
from trainers.tracking.registered_models import client_for, find_model

_log = logging.getLogger(__name__)

_PREFIX = "models:/"
_ALIASES = ("champion", "candidate")  # of a name without one: the first that is set
_PATIENCE_S = 0.25  # how long a request waits for a look-up when an earlier answer is there
_FIRST_ANSWER_S = 5.0  # how long it waits when none is
_UNKNOWN_FOR_S = 30.0  # how long a version that is not there is refused without asking again
_MOST_REFERENCES = 1000  # that are remembered


def name_of(model: str) -> str:
    """The name in `NAME`, `NAME@alias` or `NAME:version`, with or without `models:/`."""
    return re.split("[@:]", model.removeprefix(_PREFIX))[0]


@dataclass
class _Answer:
    """version: None where the registry has no such model, `refusal` says it. looked_up: time of the answer."""

    version: str | None
    looked_up: float
    refusal: str = ""


class Resolver:
    """Asks the registry for an alias at most once in `ttl_s` seconds, one look-up of a reference at a time.

    While MLflow is down or hangs, the last answer is used: a request waits a quarter of a second for a look-up that has
    just begun, and not at all for an older one. Belongs to one event loop.
    """

    def __init__(self, models: list[str], tracking_uri: str, ttl_s: float) -> None:
        self._defaults = {name_of(model): model.removeprefix(_PREFIX) for model in models}
        self._uri, self._ttl_s = tracking_uri, ttl_s
        self._known: OrderedDict[str, _Answer] = OrderedDict()
        self._asking: dict[str, tuple[float, asyncio.Future[_Answer]]] = {}
        self._silent: set[str] = set()  # references for which the last look-up failed
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="registry")
        self._client: Any = None

    @property
    def names(self) -> list[str]:
        """The models that are served."""
        return list(self._defaults)

    def age_s(self, name: str) -> float | None:
        """Seconds since the registry last answered for a served name; None: never."""
        known = self._known.get(self._defaults[name])
        return None if known is None else time.monotonic() - known.looked_up

    async def resolve(self, reference: str) -> tuple[str, str]:
        """(name, version) of `name`, `name@alias` or `name:version`.

        Raises:
            Problem: 404 not served or no such version, 503 MLflow does not answer and never has for this reference.
        """
        name = name_of(reference)
        if name not in self._defaults:
            raise Problem(404, f"{name} is not served here; served are {', '.join(self._defaults)}")
        if reference == name:
            reference = self._defaults[name]
        numbered = ":" in reference
        known = self._known.get(reference)
        if known is None or not self._is_fresh(known, numbered):
            known = await self._ask(reference, known)
        if known.version is None:
            raise Problem(404, known.refusal)
        return name, known.version

    def _is_fresh(self, known: _Answer, numbered: bool) -> bool:
        age = time.monotonic() - known.looked_up
        if not numbered:  # an alias may have moved, or come back
            return age < self._ttl_s
        return known.version is not None or age < _UNKNOWN_FOR_S  # a version's number never changes its meaning

    async def _ask(self, reference: str, known: _Answer | None) -> _Answer:
        began, asking = self._asking.get(reference) or self._begin(reference)
        patience = _FIRST_ANSWER_S if known is None else _PATIENCE_S - (time.monotonic() - began)
        if patience > 0:
            await asyncio.wait([asking], timeout=patience)
        if asking.done() and asking.exception() is None:
            return asking.result()
        if known is None:
            raise Problem(503, "the registry does not answer", {"Retry-After": "5"})
        return known

    def _begin(self, reference: str) -> tuple[float, asyncio.Future[_Answer]]:
        asking = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, reference)
        self._asking[reference] = began = (time.monotonic(), asking)

        def done(asking: asyncio.Future[_Answer]) -> None:
            del self._asking[reference]
            if asking.cancelled():  # the service ends
                return
            error = asking.exception()
            if error is None:
                self._silent.discard(reference)
                self._known[reference] = asking.result()
                self._known.move_to_end(reference)
                while len(self._known) > _MOST_REFERENCES:
                    self._known.popitem(last=False)
            elif reference not in self._silent:  # told once, not at each look-up
                self._silent.add(reference)
                _log.warning("the registry does not answer for %s: %s", reference, without_password(first_line(error)))

        asking.add_done_callback(done)
        return began

    def _look_up(self, reference: str) -> _Answer:
        """Called in a thread. Raises MlflowException, OSError: the registry does not answer."""
        try:
            return _Answer(self._version_of(reference), time.monotonic())
        except InputError as error:
            return _Answer(None, time.monotonic(), str(error))

    def _version_of(self, reference: str) -> str:
        if self._client is None:
            self._client = client_for(self._uri)
        if "@" in reference or ":" in reference:
            return find_model(self._client, reference).version
        try:
            aliases = self._client.get_registered_model(reference).aliases
        except MlflowException as error:
            if not is_absent(error):
                raise
            aliases = {}
        for alias in _ALIASES:
            if alias in aliases:
                return str(aliases[alias])
        return find_model(self._client, reference).version
