"""Requests that schemathesis makes of an application's own document."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

FUZZED = pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(0, id="one-round", marks=pytest.mark.slow),
        pytest.param(300, id="five-minutes", marks=[pytest.mark.stack, pytest.mark.minutes, pytest.mark.timeout(900)]),
    ],
)


def fuzz(app: FastAPI, token: str, paths: set[str] | int, *, seconds: float = 0) -> int:
    """Try every operation with right and wrong requests, in rounds of other seeds until `seconds` have passed; one round at
    least. Returns how many requests were made.

    All checks but one: a value that the document leaves open, as a recipe or a picture, has the form of one and may be refused.

    Args:
        paths: that the document has, or how many operations.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    rejected = schema.config.checks.negative_data_rejection
    rejected.expected_statuses = [*rejected.expected_statuses, "413"]  # wrong, and too much before it was looked at
    headers, made = {"Authorization": f"Bearer {token}"}, 0

    def try_out(case: schemathesis.Case) -> None:
        nonlocal made
        made += 1
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

    operations = [result.ok() for result in schema.get_all_operations()]
    assert paths in (len(operations), {operation.path for operation in operations})
    how = settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    for number in _rounds(seconds):
        for operation in operations:
            modes = [schemathesis.GenerationMode.POSITIVE]
            if operation.body or operation.path_parameters or operation.query:  # else nothing could be wrong
                modes.append(schemathesis.GenerationMode.NEGATIVE)
            for mode in modes:
                seed(number)(how(given(case=operation.as_strategy(generation_mode=mode))(try_out)))()
    return made


def _rounds(seconds: float) -> Iterator[int]:
    ends, number = time.monotonic() + seconds, 0
    yield number
    while time.monotonic() < ends:
        number += 1
        yield number
