"""Batches are collated and sent to the device by a thread of their own, ahead of the step that uses them."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import weakref
from collections.abc import Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trainers.m2can.batch import Batch

AHEAD = 2  # batches that are ready or being made while a step runs
CLOSE_S = 10.0  # a thread that still waits for the cluster by then ends by itself later

_log = logging.getLogger(__name__)


Item = TypeVar("Item", bound=tuple[Any, Batch | None])  # what is known of a batch, and the batch if it has any row


class Feed(Generic[Item]):
    """Gives what `batches` gives, in its order; a thread runs `batches` and stays AHEAD of them ahead.

    On a GPU the thread works on a stream of its own and hands a batch over when its copies are done. The batch's memory
    belongs to that stream: the reader's stream is recorded, so that it is not given away before the reader's kernels end.

    Args:
        batches: makes the items; it runs, and is closed, in the thread.
        device: where the batches are.

    waited: seconds that the reader waited for a batch.

    Raises:
        Exception: what `batches` raises, in its place in the order.
    """

    def __init__(self, batches: Generator[Item], device: torch.device) -> None:
        self.waited = 0.0
        self._device = device
        self._handover: _Handover[Item] = _Handover()
        # The thread does not refer to the feed: one that is dropped unread ends too.
        arguments = (batches, device, self._handover)
        self._thread = threading.Thread(target=_make_batches, args=arguments, daemon=True, name="m2can-feed")
        weakref.finalize(self, self._handover.stop)
        self._thread.start()

    def __iter__(self) -> Feed[Item]:
        return self

    def __next__(self) -> Item:
        if self._handover.stopped:
            raise StopIteration
        started = time.perf_counter()
        made = self._handover.ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(made, _End):
            self.close()
            if made.error is not None:
                raise made.error
            raise StopIteration
        self._handover.slots.release()
        if self._device.type == "cuda" and made[1] is not None:
            stream = torch.cuda.current_stream(self._device)
            for value in vars(made[1]).values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(stream)
        return made

    def close(self) -> None:
        """End the thread and let go of batches that were not read."""
        self._handover.stop()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            _log.warning("the data pipeline has not answered within %g s; its thread is left to end by itself", CLOSE_S)
        self._handover.ready = queue.SimpleQueue()

    def __enter__(self) -> Feed[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Handover(Generic[Item]):
    """What reader and thread share: a slot for each batch that may be made, and those that are ready."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(AHEAD)
        self.ready: queue.SimpleQueue[Item | _End] = queue.SimpleQueue()
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        self.slots.release()

    def one_more(self) -> bool:
        """Wait for a slot; False if no more batches are wanted."""
        self.slots.acquire()
        return not self.stopped


def _make_batches(batches: Generator[Item], device: torch.device, handover: _Handover[Item]) -> None:
    ready, error = handover.ready, None
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with contextlib.closing(batches), torch.cuda.stream(stream):
            while handover.one_more():
                made = next(batches, None)
                if made is None:
                    break
                if stream is not None:
                    stream.synchronize()  # the copies are done: pinned memory may be used again
                ready.put(made)
                del made
    except BaseException as caught:  # it is the reader's
        error = caught
    ready.put(_End(error))
