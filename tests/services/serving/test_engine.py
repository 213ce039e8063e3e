"""The queue in front of a model: batches, turns, what nobody waits for, versions in memory."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from datasets_manifest.errors import InputError
from services.serving import engine as engine_module
from services.serving.engine import MOST_SAMPLES, Engine
from services.serving.samples import Sample
from services.web.problems import Problem


class Recorded:
    """In place of `predict_samples`: notes every batch; the first waits until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, predictor: Any, texts: list[list[str]], images: Any) -> list[dict[str, Any]]:
        self.batches.append([f"{predictor}/{sample[0]}" for sample in texts])
        self.go.wait(30)
        return [{"label": sample[0]} for sample in texts]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(engine_module, "predict_samples", found)
    return found


def of(*names: str, pixels: int = 0) -> list[Sample]:
    samples = [Sample(text=[name]) for name in names]
    for sample in samples:
        sample._pixels = pixels
    return samples


async def first_computes(recorded: Recorded) -> None:
    while not recorded.batches:
        await asyncio.sleep(0.001)


def test_the_next_batch_forms_while_the_last_one_computes(recorded: Recorded) -> None:
    async def run() -> list[Any]:
        engine = Engine(lambda model_id: model_id)  # type: ignore[arg-type, return-value]
        asked = [asyncio.create_task(engine.predict("m:1", of("first")))]
        await first_computes(recorded)
        asked += [asyncio.create_task(engine.predict("m:1", of(f"a{n}", f"b{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        recorded.go.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    assert answers[0] == [{"label": "first"}]
    assert answers[5] == [{"label": "a4"}, {"label": "b4"}]
    assert [len(batch) for batch in recorded.batches] == [1, MOST_SAMPLES, 40 - MOST_SAMPLES]


def test_callers_take_turns_and_pixels_bound_a_batch(recorded: Recorded) -> None:
    """A caller with much to do keeps another waiting for one batch, not for all of its own."""

    async def run() -> None:
        engine = Engine(lambda model_id: model_id)  # type: ignore[arg-type, return-value]
        asked = [asyncio.create_task(engine.predict("m", of("first"), "greedy"))]
        await first_computes(recorded)
        heavy = of(*(f"g{n}" for n in range(6)), pixels=30_000_000)
        asked.append(asyncio.create_task(engine.predict("m", heavy, "greedy")))
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(engine.predict("m", of("small"), "other")))
        await asyncio.sleep(0)
        recorded.go.set()
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert recorded.batches[1] == ["m/g0", "m/small"]
    assert [len(batch) for batch in recorded.batches] == [1, 2, 1, 1, 1, 1, 1]


def test_what_nobody_waits_for_is_not_computed(recorded: Recorded) -> None:
    async def run() -> None:
        engine = Engine(lambda model_id: model_id)  # type: ignore[arg-type, return-value]
        first = asyncio.create_task(engine.predict("m", of("first")))
        await first_computes(recorded)
        gone = asyncio.create_task(engine.predict("m", of("gone")))
        stays = asyncio.create_task(engine.predict("m", of("stays")))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        recorded.go.set()
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert recorded.batches == [["m/first"], ["m/stays"]]


def test_an_error_is_that_batch_s_and_loading_fails_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(predictor: Any, texts: list[list[str]], images: Any) -> list[dict[str, Any]]:
        if texts[0] == ["bad"]:
            raise RuntimeError("broken")
        return [{} for _ in texts]

    monkeypatch.setattr(engine_module, "predict_samples", failing)
    loads: list[str] = []

    def load(model_id: str) -> Any:
        loads.append(model_id)
        if model_id == "damaged:1":
            raise InputError("is damaged", file="model.safetensors")
        return model_id

    async def run() -> None:
        engine = Engine(load, most_models=2)
        with pytest.raises(RuntimeError, match="broken"):
            await engine.predict("m:1", of("bad"))
        assert await engine.predict("m:1", of("good")) == [{}]
        for _ in range(2):
            with pytest.raises(Problem, match=r"damaged:1 cannot be loaded: model\.safetensors: is damaged") as refused:
                await engine.predict("damaged:1", of("x"))
            assert refused.value.status == 503
        for model_id in ("m:2", "m:1", "m:3", "m:1", "m:2"):
            await engine.ready(model_id)

    asyncio.run(run())
    assert loads == ["m:1", "damaged:1", "damaged:1", "m:2", "m:3", "m:2"]
