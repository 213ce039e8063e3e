"""What Ray Serve's HTTP proxy says itself, when no replica can answer, in the form of all our errors.

The proxy's process finds `middlewares` by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, set before Ray starts.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.web.problems import Problem, problem_response

IMPORT_PATH = "services.serving.proxy:middlewares"
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def middlewares() -> list[Middleware]:
    """Called by the proxy when it starts."""
    return [Middleware(Problems)]


class Problems:
    """ASGI middleware: an error that is no JSON becomes a problem document; 5xx tell the client to try again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: int | None = None

        async def in_our_form(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                kind = dict(message["headers"]).get(b"content-type", b"")
                if b"json" not in kind:
                    refused = message["status"]
            if refused is None:
                await send(message)

        await self.app(scope, receive, in_our_form)
        if refused is not None:
            await problem_response(_problem(refused))(scope, receive, send)


def _problem(status: int) -> Problem:
    if status == HTTPStatus.NOT_FOUND:
        return Problem(status, "nothing is served at this address")
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(status, HTTPStatus(status).phrase.lower())
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE, "a replica was lost or none is free; try again", {"Retry-After": "1"}
    )
