"""Names and aliases → versions, with a registry that moves, is away, or hangs."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from datasets_manifest.errors import InputError
from services import promotion
from services.serving.resolver import Resolver
from services.serving.service import ServeConfig, require_models
from services.web.auth import Tokens
from services.web.problems import Problem
from tests.services.registered import NAME, Registered


def test_a_promotion_is_seen_and_a_lost_registry_is_not(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        promotion.promote(registered.client, f"{NAME}:1", "served")
        resolver = Resolver([f"{NAME}@served"], registered.uri, ttl_s=0.0)
        assert resolver.names == [NAME] and resolver.age_s(NAME) is None
        assert await resolver.resolve(NAME) == (NAME, "1")
        promotion.promote(registered.client, f"{NAME}:2", "served")
        assert await resolver.resolve(NAME) == (NAME, "2")
        assert await resolver.resolve(f"{NAME}:1") == (NAME, "1")

        def away(reference: str) -> str:
            raise OSError("away")

        monkeypatch.setattr(resolver, "_version_of", away)
        assert await resolver.resolve(NAME) == (NAME, "2")
        with pytest.raises(Problem) as unknown:
            await resolver.resolve(f"{NAME}@unheard")
        assert unknown.value.status == 503
        with pytest.raises(Problem) as other:
            await resolver.resolve("other")
        assert other.value.status == 404

    asyncio.run(run())


@pytest.mark.parametrize("model", [f"{NAME}:1", f"models:/{NAME}:1"])
def test_a_version_can_be_what_a_name_means(registered: Registered, model: str) -> None:
    async def run() -> None:
        resolver = Resolver([model], registered.uri, ttl_s=0.0)
        assert resolver.names == [NAME]
        for asked, version in ((NAME, "1"), (f"{NAME}:1", "1"), (f"{NAME}:2", "2")):
            assert await resolver.resolve(asked) == (NAME, version)

    asyncio.run(run())


def test_a_model_is_named_once(registered: Registered) -> None:
    with pytest.raises(InputError, match="is named twice"):
        require_models(ServeConfig([f"{NAME}@candidate", f"{NAME}:1"], registered.uri, Tokens([])))


def test_a_registry_that_hangs_holds_nobody_up(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        promotion.promote(registered.client, f"{NAME}:1", "served")
        resolver = Resolver([f"{NAME}@served"], registered.uri, ttl_s=0.0)
        await resolver.resolve(NAME)
        answers, asked = threading.Event(), []

        def hanging(reference: str) -> str:
            asked.append(reference)
            answers.wait(30)
            return "7"

        monkeypatch.setattr(resolver, "_version_of", hanging)
        started = time.monotonic()
        found = await asyncio.gather(*(resolver.resolve(NAME) for _ in range(200)))
        assert set(found) == {(NAME, "1")}
        later = [await resolver.resolve(NAME) for _ in range(200)]
        assert set(later) == {(NAME, "1")}
        assert time.monotonic() - started < 5  # one wait of a quarter of a second, not 400
        assert asked == [f"{NAME}@served"]  # one look-up at a time
        answers.set()
        while await resolver.resolve(NAME) != (NAME, "7"):
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_version_that_is_not_there_is_asked_for_once(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[str]:
        resolver = Resolver([NAME], registered.uri, ttl_s=1.0)
        asked: list[str] = []

        def absent(reference: str) -> str:
            asked.append(reference)
            raise InputError("is not in the registry", value=reference)

        monkeypatch.setattr(resolver, "_version_of", absent)
        for _ in range(5):
            with pytest.raises(Problem, match="is not in the registry") as refused:
                await resolver.resolve(f"{NAME}:99")
            assert refused.value.status == 404
        return asked

    assert asyncio.run(run()) == [f"{NAME}:99"]
