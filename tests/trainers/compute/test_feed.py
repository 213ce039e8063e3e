"""The thread that makes batches gives the same ones in the same order, hands on errors, and ends with its reader."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets_manifest.stream.encode import Encoding, HostBatch
from datasets_manifest.stream.local_stream import LocalStream
from datasets_manifest.stream.plan import StepSlice
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.compute.device_batches import Fed, make_encoding, step_batches
from trainers.compute.feed import AHEAD, Feed
from trainers.loop.loop import Loop
from trainers.loop.observer import Observer
from trainers.m2can.batch import Batch
from trainers.preflight.preparation import Prepared
from trainers.step.finite_check import NonFiniteLoss
from trainers.worker.reports import StopRequested

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_run(tmp_path_factory.mktemp("cards"), ["train.epochs=3"])


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "m2can-feed"]


class Source(LocalStream):
    """Counts the training batches it made, fails before the one numbered `broken`, and says when it was closed."""

    made, broken, closed = 0, -1, False

    def train(self, slices: list[StepSlice], encoding: Encoding) -> Iterator[HostBatch]:
        values = vars(self)
        values["made"] = 0
        try:
            for host in super().train(slices, encoding):
                if self.made == self.broken:
                    raise OSError("the disk is gone")
                values["made"] += 1
                yield host
        finally:
            values["closed"] = True


def fed_loop(run: Prepared, broken: int = -1, observer: Observer | None = None) -> tuple[Loop, Source]:
    loop, source = make_loop(run, observer), Source(run.corpus.table)
    vars(source)["broken"] = broken
    loop.batches.source = source
    return loop, source


def tensors(batch: Batch) -> dict[str, object]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in vars(batch).items()}


def test_the_same_batches_in_the_same_order(run: Prepared) -> None:
    loop = make_loop(run)
    slices = list(loop.plan().worker_steps(0, 1))
    encoding = make_encoding(loop.recipe, loop.card.vocabulary, strong=True)
    wanted = list(step_batches(slices, loop.batches.source.train(slices, encoding), CPU, loop.dtype))
    with loop.batches.train(slices) as feed:
        found = list(feed)
    assert len(found) == len(wanted) == 5
    for (host, batch), (wanted_host, wanted_batch) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(host.rows, wanted_host.rows)
        assert tensors(batch) == tensors(wanted_batch)


def test_it_stays_two_batches_ahead(run: Prepared) -> None:
    loop, source = fed_loop(run)
    with loop.batches.train(list(loop.plan().worker_steps(0, 1))) as feed:
        next(feed)
        until = time.monotonic() + 5
        while source.made < 1 + AHEAD and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        assert source.made == 1 + AHEAD
    assert source.closed


def test_an_error_comes_in_its_place(run: Prepared) -> None:
    loop, source = fed_loop(run, broken=3)
    with pytest.raises(OSError, match="the disk is gone"):
        loop.run_epoch()
    assert loop.steps_done == 3
    assert source.closed
    assert threads() == []


def test_a_stream_that_ends_too_early_is_an_error(run: Prepared) -> None:
    loop = make_loop(run)
    slices = list(loop.plan().worker_steps(0, 1))
    with pytest.raises(ValueError, match="shorter"):
        list(Feed(step_batches(slices, [], CPU, loop.dtype), CPU))


class StopAfter(Observer):
    def between_steps(self, loop: Loop) -> None:
        raise StopRequested(loop.epoch + 1, loop.steps_done)


def test_a_request_to_stop_ends_the_thread(run: Prepared) -> None:
    loop, source = fed_loop(run, observer=StopAfter())
    with pytest.raises(StopRequested):
        loop.run_epoch()
    assert loop.steps_done == 1
    assert source.closed
    assert threads() == []


def test_a_loss_that_is_not_finite_ends_the_thread(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, source = fed_loop(run)
    objective = loop.step.objective
    monkeypatch.setattr(loop.step, "objective", lambda *given: {k: v * torch.nan for k, v in objective(*given).items()})
    with pytest.raises(NonFiniteLoss):
        loop.run_epoch()
    assert source.closed
    assert threads() == []


def test_a_feed_that_is_dropped_unread_ends(run: Prepared) -> None:
    loop, source = fed_loop(run)
    loop.run_epoch()
    assert len(threads()) == 1  # of the second epoch, which nobody asks for
    del loop
    gc.collect()
    for thread in threads():
        thread.join(5)
    assert source.closed


def test_closing_a_loop_ends_the_thread_of_the_next_epoch(run: Prepared) -> None:
    loop, _ = fed_loop(run)
    loop.run_epoch()
    loop.close()
    assert threads() == []


def test_closing_twice_and_reading_on_is_harmless() -> None:
    closed = threading.Event()

    def numbers() -> Generator[Fed]:
        try:
            yield from range(10**6)  # type: ignore[misc]
        finally:
            closed.set()

    feed = Feed(numbers(), CPU)
    assert [next(feed), next(feed)] == [0, 1]
    feed.close()
    feed.close()
    assert closed.is_set()
    assert list(feed) == []


class Recorder(Observer):
    """The rows of all steps."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def step(self, slice_: StepSlice, plan: object, passes: object) -> None:
        self.rows.append(slice_.rows_DB.ravel().tolist())


@pytest.mark.parametrize("option", ["uacr.enabled=false", "uacr.warmup=1", "uacr.warmup=2"])
def test_asking_early_changes_nothing(tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared_run(tmp_path, ["train.epochs=3", option])
    found = []
    for early in (True, False):
        if not early:
            monkeypatch.setattr(Loop, "_ask_for", lambda loop, plan: None)
        recorder = Recorder()
        loop = make_loop(run, recorder)
        metrics = [loop.run_epoch()[0] for _ in range(3)]
        kept = [{k: v for k, v in m.items() if not k.startswith(("time/", "speed/"))} for m in metrics]
        found.append((kept, recorder.rows))
    assert found[0] == found[1]


@pytest.mark.parametrize(("option", "before_scoring"), [("uacr.warmup=2", True), ("uacr.warmup=1", False)])
def test_the_next_epoch_is_asked_for_before_the_scores_if_it_does_not_need_them(
    tmp_path: Path, option: str, before_scoring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(prepared_run(tmp_path, ["train.epochs=3", option]))
    asked = []
    score = loop.score
    monkeypatch.setattr(loop, "score", lambda: (asked.append(loop._next is not None), score())[1])
    loop.run_epoch()
    assert asked == [before_scoring]
    assert loop._next is not None
    assert loop._next[0].epoch == 1
    loop.close()
