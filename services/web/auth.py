"""Who may use an HTTP service: bearer tokens with scopes, stored as hashes in a file."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from datasets_manifest.errors import InputError
from services.web.problems import Problem, describe

Scope = Literal["read", "submit", "admin", "predict"]


@dataclass(frozen=True)
class Caller:
    """The owner of a request's token. models: how the names begin that its jobs may register; none: any name."""

    name: str
    scopes: frozenset[str]
    models: tuple[str, ...] = ()


class TokenEntry(BaseModel):
    """One entry of a tokens file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(min_length=1)
    models: list[Annotated[str, Field(min_length=1)]] = []


class Tokens:
    """The tokens a service accepts. Without any, everybody who reaches the (loopback) port may do everything."""

    def __init__(self, entries: list[TokenEntry]) -> None:
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
            entries = TypeAdapter(list[TokenEntry]).validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=file, wanted="a tokens file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"is not YAML ({type(error).__name__})", file=file) from None
        except ValidationError as error:
            raise InputError(describe(error.errors()), file=file, wanted="a list of name, sha256, scopes") from None
        if not entries:
            raise InputError("has no token", file=file, wanted="the line that `m2can token NAME --scope …` prints")
        return cls(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def identify(self, authorization: str | None) -> Caller:
        """The caller of an `Authorization` header. Raises Problem: 401, no token or an unknown one."""
        if not self._entries:
            return Caller("loopback", frozenset(get_args(Scope)))
        kind, _, token = (authorization or "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        # Every entry is compared, in constant time: the response time tells nothing about the known hashes.
        found = [entry for entry in self._entries if hmac.compare_digest(given, entry.sha256)]
        if kind.lower() != "bearer" or not found:
            raise Problem(401, "send a known token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        return Caller(found[-1].name, frozenset(found[-1].scopes), tuple(found[-1].models))


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raises Problem: 403, the caller has neither `scope` nor admin."""
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise Problem(403, f"the token of {caller.name} lacks the scope {scope}")


def new_token(name: str, scopes: list[str], models: Sequence[str] = ()) -> tuple[str, str]:
    """A token, and its line for the tokens file. `models`: how names begin that its jobs may register.

    Raises:
        InputError: no such scope, or a name that cannot be used.
    """
    token = secrets.token_urlsafe(32)
    entry = {
        "name": name,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "scopes": scopes,
        "models": list(models),
    }
    try:
        TokenEntry.model_validate(entry)
    except ValidationError as error:
        raise InputError(describe(error.errors()), field="NAME, --scope", value=(name, scopes)) from None
    only = f", models: {json.dumps(list(models))}" if models else ""
    return token, f"- {{name: {name}, sha256: {entry['sha256']}, scopes: [{', '.join(scopes)}]{only}}}"


def check_host(host: str, tokens: Tokens) -> None:
    """Raises InputError: without tokens, a service listens at a loopback address only."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not len(tokens):
        wanted = "127.0.0.1, or --tokens FILE (see `m2can token --help`)"
        raise InputError("is reached by others and no token is asked for", field="--host", value=host, wanted=wanted)
