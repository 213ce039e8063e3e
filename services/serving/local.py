"""Online inference in one process, without Ray: uvicorn around the same application."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from datasets_manifest.errors import InputError
from services.serving.service import ServeConfig, Service, require_models

_HEADERS_S = 10.0  # within which a request's headers must have come


class HeadersInTime(HttpToolsProtocol):
    """Closes a connection whose first or next request does not send its headers within ten seconds."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_headers()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(_HEADERS_S, self.transport.close)


def serve_here(config: ServeConfig, host: str, port: int, on_start: Callable[[], None]) -> None:
    """Serve at host:port until SIGTERM or SIGINT; requests under way are answered, for at most `grace_s`.

    Args:
        on_start: called without arguments once requests are accepted.

    Raises:
        InputError: a model that is not in the registry, or the port is taken.
    """
    require_models(config)
    service = Service(config)
    settings = uvicorn.Config(
        service.app,
        http=HeadersInTime,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=int(config.grace_s),
    )
    bound = _bind(host, port)
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(DrainingServer(settings, service, config.grace_s, on_start).serve([bound]))
    service.close()


class DrainingServer(uvicorn.Server):
    """Once asked to end it keeps its port and lets nothing new in, until the requests under way are answered."""

    def __init__(
        self, settings: uvicorn.Config, service: Service, grace_s: float, on_start: Callable[[], None]
    ) -> None:
        super().__init__(settings)
        self._admission, self._grace_s, self._on_start = service.admission, grace_s, on_start
        self._ends: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by SIGTERM and SIGINT."""
        self._admission.draining = True
        self._ends = self._ends or time.monotonic() + self._grace_s

    async def on_tick(self, counter: int) -> bool:
        """Called every tenth of a second; true ends the server."""
        if self._ends is not None and (not self._admission.under_way or time.monotonic() > self._ends):
            return True
        return await super().on_tick(counter)


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise InputError(f"cannot be used ({error.strerror})", field="--port", value=port) from None
