"""What both HTTP services share: problems as JSON (RFC 9457), tokens with scopes, a limit on the body, where to listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import yaml
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datasets_manifest.errors import InputError
from services.errors import ServiceUnavailable

_log = logging.getLogger(__name__)

Scopes = Literal["read", "submit", "admin", "predict"]
_MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is not the one asked for. `detail` says what to do about it."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class ProblemBody(BaseModel):
    """The body of every answer from 400 on."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem_response(problem: Problem) -> JSONResponse:
    body = ProblemBody(title=HTTPStatus(problem.status).phrase, status=problem.status, detail=problem.detail)
    return JSONResponse(body.model_dump(), problem.status, problem.headers, media_type=_MEDIA_TYPE)


def install_problems(app: FastAPI) -> None:
    """Every error of `app` becomes a problem; an unforeseen one tells the log more than the caller."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(Problem(error.status_code, str(error.detail), dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(Problem(422, describe(error.errors())))

    @app.exception_handler(InputError)
    async def _input(request: Request, error: InputError) -> JSONResponse:
        return problem_response(Problem(422, str(error)))

    @app.exception_handler(ServiceUnavailable)
    async def _unavailable(request: Request, error: ServiceUnavailable) -> JSONResponse:
        return problem_response(Problem(503, str(error), {"Retry-After": "5"}))

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return problem_response(Problem(400, "the body ended early"))

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(Problem(500, "an unforeseen error; the service's log has it"))


def describe(errors: Any) -> str:
    """pydantic's first fault as one sentence, without the value: it may be a whole picture."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place or 'body'}: {first['msg']}{more}"


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may."""

    name: str
    scopes: frozenset[str]


class _TokenEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scopes] = Field(min_length=1)


class Tokens:
    """Known tokens, as hashes only. Without any, everybody who reaches the (loopback) port may do everything."""

    def __init__(self, entries: list[tuple[str, str, list[str]]]) -> None:
        self._entries = entries

    @classmethod
    def read(cls, file: Path | None) -> Tokens:
        """Read a tokens file: YAML list of name, sha256 and scopes.

        Raises:
            InputError: missing, readable by others, or malformed.
        """
        if file is None:
            return cls([])
        try:
            if file.stat().st_mode & 0o077:
                raise InputError("others may read it", file=file, wanted="mode 600 (chmod 600)")
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            entries = TypeAdapter(list[_TokenEntry]).validate_python(content)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=file, wanted="a tokens file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"is not YAML ({type(error).__name__})", file=file) from None
        except ValidationError as error:
            raise InputError(describe(error.errors()), file=file, wanted="a list of name, sha256, scopes") from None
        if not entries:
            raise InputError("has no token", file=file, wanted="what `m2can token NAME` prints")
        return cls([(entry.name, entry.sha256, list(entry.scopes)) for entry in entries])

    def __len__(self) -> int:
        return len(self._entries)

    def identify(self, authorization: str | None) -> Caller:
        """The caller of an `Authorization` header.

        Raises:
            Problem: 401, no token or an unknown one.
        """
        if not self._entries:
            return Caller("loopback", frozenset({"read", "submit", "admin", "predict"}))
        kind, _, token = (authorization or "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        # All are compared, each in constant time: how long it takes says nothing about which came close.
        for name, digest, scopes in self._entries:
            if hmac.compare_digest(given, digest):
                found = Caller(name, frozenset(scopes))
        if kind.lower() != "bearer" or found is None:
            raise Problem(401, "send a known token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        return found


def require_scope(caller: Caller, scope: Scopes) -> None:
    """Admin may do everything. Raises Problem: 403."""
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise Problem(403, f"the token of {caller.name} lacks the scope {scope}")


def new_token(name: str, scopes: list[str]) -> tuple[str, str]:
    """A token, and its line for the tokens file. Raises InputError: no such scope, or a name that cannot be one."""
    token = secrets.token_urlsafe(32)
    entry = {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": scopes}
    try:
        _TokenEntry.model_validate(entry)
    except ValidationError as error:
        raise InputError(describe(error.errors()), field="NAME, --scope", value=(name, scopes)) from None
    return token, f"- {{name: {name}, sha256: {entry['sha256']}, scopes: [{', '.join(scopes)}]}}"


def check_host(host: str, tokens: Tokens) -> None:
    """Raises InputError: others could reach an address that asks for no token."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not len(tokens):
        wanted = "127.0.0.1, or --tokens FILE (see `m2can token --help`)"
        raise InputError("is reached by others and no token is asked for", field="--host", value=host, wanted=wanted)


class BodyLimit:
    """Refuses a longer body while it comes in, whatever its Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = Problem(413, f"the body is longer than {self.max_bytes} bytes; send fewer or smaller samples")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit():
            await problem_response(Problem(400, "Content-Length is no number"))(scope, receive, send)
            return
        if int(declared) > self.max_bytes:
            await problem_response(problem)(scope, receive, send)
            return
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # To the app it looks as if the caller had gone, so that it acts on nothing it has half of.
            return message if received <= self.max_bytes else {"type": "http.disconnect"}

        async def unless_over(message: Message) -> None:
            nonlocal started
            if received <= self.max_bytes or started:
                started = True
                await send(message)

        await self.app(scope, counted, unless_over)
        if received > self.max_bytes and not started:
            await problem_response(problem)(scope, receive, send)
