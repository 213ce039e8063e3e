"""A service on loopback without tokens answers only those who mean it: no page of another site, no rebound name."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.web.problems import Problem, problem_response

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class OwnHost:
    """ASGI middleware: 400 for a `Host`, 403 for an `Origin` that is not one of `names`, whatever the port.

    A browser that was lured to another site sends that site's name as Origin; after DNS rebinding, as Host.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (self.app if problem is None else problem_response(problem))(scope, receive, send)

    def _refusal(self, headers: Headers) -> Problem | None:
        if _name(f"//{headers.get('host', '')}") not in self.names:
            return Problem(400, f"this Host is not served here; wanted {', '.join(self.names)} (see --allow-host)")
        origin = headers.get("origin")
        if origin is not None and _name(origin) not in self.names:
            return Problem(403, "pages of other sites may not use this service")
        return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
