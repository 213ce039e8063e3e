"""Loaded models and their queue: requests of many callers → batches of samples → predictions.

The next batch forms while the last one computes. Callers take turns, sample by sample, so that one caller's thousand
large pictures do not keep another's single text waiting for longer than a batch takes. What nobody waits for any more
is not computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from datasets_manifest.errors import InputError
from services.batch_prediction import predict_samples
from services.serving.samples import Sample
from services.web.problems import Problem
from trainers.model.predictor import Predictions, Predictor

MOST_SAMPLES = 32  # of a batch
MOST_PIXELS = 40_000_000  # of a batch, except that one sample alone may have more
MOST_CHARACTERS = 200_000  # of a batch, likewise


@dataclass
class _Request:
    """One request's samples; `answers` fills up as batches end."""

    samples: list[Sample]
    done: asyncio.Future[list[dict[str, Any]]]
    answers: list[dict[str, Any] | None] = field(default_factory=list)
    next: int = 0  # sample that is not in a batch yet

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.samples)

    def answer(self, number: int, row: dict[str, Any]) -> None:
        self.answers[number] = row
        if not self.done.done() and all(found is not None for found in self.answers):
            self.done.set_result([found for found in self.answers if found is not None])


class _Queue:
    """The waiting requests for one model, by caller."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_Request]] = OrderedDict()

    def add(self, caller: str, request: _Request) -> None:
        self._waiting.setdefault(caller, deque()).append(request)

    def take(self) -> list[tuple[_Request, int]]:
        """The samples of the next batch: one of each caller in turn, up to the limits. Empty: nobody waits."""
        batch: list[tuple[_Request, int]] = []
        pixels = characters = 0
        while (request := self._first()) is not None:
            sample = request.samples[request.next]
            pixels, characters = pixels + sample.pixels, characters + sum(map(len, sample.texts))
            if batch and (len(batch) == MOST_SAMPLES or pixels > MOST_PIXELS or characters > MOST_CHARACTERS):
                break
            batch.append((request, request.next))
            request.next += 1
            self._waiting.move_to_end(next(iter(self._waiting)))
        return batch

    def _first(self) -> _Request | None:
        """The first caller's first request that still has samples and somebody who waits for them."""
        while self._waiting:
            caller, requests = next(iter(self._waiting.items()))
            while requests and (requests[0].done.done() or requests[0].next == len(requests[0].samples)):
                requests.popleft()
            if requests:
                return requests[0]
            del self._waiting[caller]
        return None


class Engine:
    """Keeps the most recently used versions in memory and predicts with one thread. Belongs to one event loop.

    Args:
        load: `name:version` → Predictor; called in a thread.
        on_predictions: is told of every batch, `name:version` and what was predicted, in a thread; None: nobody is.
        most_models: versions in memory; during a promotion at least two are in use.
    """

    def __init__(
        self,
        load: Callable[[str], Predictor],
        most_models: int = 3,
        on_predictions: Callable[[str, Predictions], None] | None = None,
    ) -> None:
        self._load, self._most_models, self._on_predictions = load, most_models, on_predictions
        self._models: OrderedDict[str, asyncio.Future[Predictor]] = OrderedDict()
        self._queues: dict[str, _Queue] = {}
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._worker: asyncio.Task[None] | None = None

    async def predict(self, model_id: str, samples: list[Sample], caller: str = "") -> list[dict[str, Any]]:
        """One mapping a sample, as services.batch_prediction.predict_samples makes them.

        Raises:
            Problem: 503, the version's files cannot be loaded.
        """
        await self.ready(model_id)
        request = _Request(samples, asyncio.get_running_loop().create_future())
        self._queues.setdefault(model_id, _Queue()).add(caller, request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await request.done

    async def ready(self, model_id: str) -> None:
        """Return once the version is loaded. Raises Problem: 503, its files cannot be."""
        await self._predictor(model_id)

    async def _predictor(self, model_id: str) -> Predictor:
        """Loading goes on when the request that began it is given up: later requests use the result."""
        loading = self._models.get(model_id)
        if loading is None:
            loading = asyncio.get_running_loop().run_in_executor(self._loading, self._load, model_id)
            self._models[model_id] = loading
        self._models.move_to_end(model_id)
        while len(self._models) > self._most_models:
            self._models.popitem(last=False)
        try:
            return await asyncio.shield(loading)
        except Exception as error:
            if self._models.get(model_id) is loading:  # not one that a later request began
                del self._models[model_id]
            reason = str(error) if isinstance(error, InputError) else type(error).__name__
            raise Problem(503, f"{model_id} cannot be loaded: {reason}", {"Retry-After": "5"}) from error

    async def _work(self) -> None:
        """Compute batches, the models in turn, until nobody waits."""
        while self._queues:
            for model_id in list(self._queues):
                batch = self._queues[model_id].take()
                if batch:
                    await self._compute(model_id, batch)
                else:
                    del self._queues[model_id]

    async def _compute(self, model_id: str, batch: list[tuple[_Request, int]]) -> None:
        samples = [request.samples[number] for request, number in batch]
        texts, images = [sample.texts for sample in samples], [sample.images for sample in samples]
        try:
            predictor = await self._predictor(model_id)
            predict = functools.partial(predict_samples, predictor, texts, images)
            if self._on_predictions is not None:
                predict = functools.partial(predict, functools.partial(self._on_predictions, model_id))
            rows = await asyncio.get_running_loop().run_in_executor(self._computing, predict)
        except Exception as error:  # the requests of this batch fail, not the worker
            for request, _ in _open(batch):
                request.done.set_exception(error)
            return
        for (request, number), row in zip(batch, rows, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):
                request.answer(number, row)


def _open(batch: list[tuple[_Request, int]]) -> Iterator[tuple[_Request, int]]:
    return ((request, number) for request, number in batch if not request.done.done())
