"""Errors over HTTP as problem documents (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from datasets_manifest.errors import InputError
from services.errors import ServiceUnavailable, in_words

_log = logging.getLogger(__name__)


class Problem(Exception):
    """A request that is answered with an error status. `detail` tells the caller what to do about it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class ProblemBody(BaseModel):
    """The body of every response from status 400 on."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these problems."""
    return {status: {"model": ProblemBody, "content": {"application/problem+json": {}}} for status in statuses}


_PROBLEM_OF: dict[type[Exception], Callable[[Any], Problem]] = {
    Problem: lambda error: error,
    HTTPException: lambda error: Problem(error.status_code, str(error.detail), dict(error.headers or {})),
    RequestValidationError: lambda error: Problem(422, describe(error.errors())),
    InputError: lambda error: Problem(422, str(error)),
    ServiceUnavailable: lambda error: Problem(503, str(error), {"Retry-After": "5"}),
    ClientDisconnect: lambda error: Problem(400, "the body ended early"),
    Exception: lambda error: _unexpected(error),
}


def _unexpected(error: Exception) -> Problem:
    if in_words(error) is not None:  # whose text has addresses that are not the caller's business
        return Problem(503, "MLflow does not answer, or refuses; the service's log says why", {"Retry-After": "5"})
    return Problem(500, "unexpected error; the service's log has the details")


def install_problems(app: FastAPI) -> None:
    """Turn every error of `app` into a problem document; the details of an unexpected one go to the log only."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        problem = next(_PROBLEM_OF[kind] for kind in type(error).__mro__ if kind in _PROBLEM_OF)(error)
        if problem.status == 500:
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        elif (words := in_words(error)) is not None:
            _log.error("%s %s: %s", request.method, request.url.path, words)
        return problem_response(problem)

    for kind in _PROBLEM_OF:
        app.add_exception_handler(kind, handle)


def problem_response(problem: Problem) -> JSONResponse:
    """The response that carries `problem`."""
    body = ProblemBody(title=HTTPStatus(problem.status).phrase, status=problem.status, detail=problem.detail)
    return JSONResponse(body.model_dump(), problem.status, problem.headers, media_type="application/problem+json")


def describe(errors: Any) -> str:
    """pydantic's first error as one sentence. The value is left out: it may be a whole picture."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}{more}"
