"""A limit on the length of a request's body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.web.problems import Problem, problem_response


class BodyLimit:
    """ASGI middleware that answers 413 as soon as more than `max_bytes` have come in, whatever Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

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
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # The app sees a disconnected client and so does not act on half a body.
            return message if received <= self.max_bytes else {"type": "http.disconnect"}

        async def unless_too_long(message: Message) -> None:
            nonlocal started
            if received <= self.max_bytes or started:
                started = True
                await send(message)

        await self.app(scope, counted, unless_too_long)
        if received > self.max_bytes and not started:
            await problem_response(too_long)(scope, receive, send)
