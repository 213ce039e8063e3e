"""Limits on a request's body: its length and its pace."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.web.problems import Problem, problem_response


class BodyLimit:
    """ASGI middleware: 413 once more than `max_bytes` have come in, whatever Content-Length says; 408 for a slow body.

    Args:
        seconds: that a body may take, and one more for every `bytes_per_s` bytes that have come in.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, *, seconds: float = 30.0, bytes_per_s: float = 50_000.0) -> None:
        self.app, self.max_bytes, self.seconds, self.bytes_per_s = app, max_bytes, seconds, bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_long = Problem(413, f"the body is longer than {self.max_bytes} bytes; send fewer or smaller samples")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit():
            await problem_response(Problem(400, "Content-Length is no number"))(scope, receive, send)
            return
        if int(declared) > self.max_bytes:
            await problem_response(too_long)(scope, receive, send)
            return
        received, started, began, whole = 0, False, time.monotonic(), False
        refusal: Problem | None = None

        async def limited() -> Message:
            nonlocal received, refusal, whole
            if whole:  # what comes after the body is that the client has gone
                return await receive()
            left = began + self.seconds + received / self.bytes_per_s - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                refusal = Problem(408, f"the body came too slowly: {received} bytes; send it faster or in parts")
            else:
                received += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if received <= self.max_bytes:
                    return message
                refusal = too_long
            # The app sees a disconnected client and so does not act on half a body.
            return {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            nonlocal started
            if refusal is None or started:
                started = True
                await send(message)

        await self.app(scope, limited, unless_refused)
        if refusal is not None and not started:
            await problem_response(refusal)(scope, receive, send)
