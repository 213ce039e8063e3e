"""The one error for bad input: it names the file, the field, the value found and what was wanted."""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

# A plain repr of an input may be gigabytes long (YAML aliases that multiply), so it is bounded while it is made.
_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel, _BOUNDED.maxlist, _BOUNDED.maxdict = 4, 8, 8
_BOUNDED.maxstring = _BOUNDED.maxlong = _BOUNDED.maxother = 200


class InputError(ValueError):
    """Bad input from a user: a file, a field, a value.

    Args:
        problem: what is wrong, in one sentence without a final full stop.
        file: the file that holds it, if there is one.
        field: the path of the field, e.g. ``splits.train.records`` or ``record 17, label``.
        value: the value found; shown shortened.
        wanted: what would have been accepted.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        field: str | None = None,
        value: Any = None,
        wanted: str | None = None,
    ) -> None:
        self.problem, self.file, self.field, self.value, self.wanted = problem, file, field, value, wanted
        parts = [str(file)] if file is not None else []
        if field is not None:
            parts.append(field)
        message = ": ".join([*parts, problem])
        if value is not None:
            shown = _BOUNDED.repr(value)
            message += f"; found {shown if len(shown) <= 200 else shown[:200] + '…'}"
        if wanted is not None:
            message += f"; wanted {wanted}"
        super().__init__(without_password(message))


def without_password(text: str) -> str:
    """An address, or a text with addresses in it, as it may be shown and stored."""
    text = re.sub(r"(?<=://)[^/\s]+@", "***@", text)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|token|sslpassword)=)[^&\s'\")]+", r"\1***", text)


def composed(text: str) -> str:
    """With accents as parts of their letters (Unicode's NFC): é as one sign, however it was written."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: refuses a key that is written twice, of which JSON would silently keep the last.

    Raises:
        ValueError: a key twice, also with its accents composed in two ways.
    """
    found = dict(pairs)
    if len({composed(key) for key in found}) < len(pairs):
        keys = [composed(key) for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:80]!r} is written twice")
    return found


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like `name`, or None if nothing is close; one that differs only in case is close."""
    names = list(valid)
    folded = {composed(each).casefold(): each for each in names}
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return folded.get(composed(name.strip()).casefold()) or (matches[0] if matches else None)


def first_line(error: BaseException | str) -> str:
    """The first line of an error's text, at most 300 characters; its type where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


@dataclass(frozen=True)
class _FieldPath:
    """The field of one pydantic error, in the user's terms.

    path: keys and indexes as the user wrote them, without pydantic's names of union members.
    models: the models that could hold the last key of `path`.
    union: length of `path` at the first union that was crossed, or None.
    """

    path: tuple[str, ...]
    models: tuple[type[BaseModel], ...]
    union: int | None


def from_validation_error(error: ValidationError, model: type[BaseModel], file: object) -> InputError:
    """The first fault of `error` as an InputError with its dotted path, the value found and what was wanted.

    An unknown key goes before all other faults: a misspelt key is often also the cause of a "missing" one. For it the
    nearest valid key *of the same level* is named.

    Args:
        error: what `model.model_validate` raised.
        model: the model that was validated; its fields are walked through Optional, unions, dicts and lists.
        file: the file, or any words that say where the input came from.
    """
    faults = [(fault, _field_path(fault["loc"], model)) for fault in error.errors(include_url=False)]
    for fault, at in faults:
        if fault["type"] in ("extra_forbidden", "invalid_key"):
            return _unknown_key(at, fault["input"], file)

    first = faults[0][1]
    if first.union is not None:
        # Every member of a union complains. The member that got furthest is the one the user meant.
        stem = first.path[: first.union]
        faults = [(fault, at) for fault, at in faults if at.path[: len(stem)] == stem]
        depth = max(len(at.path) for _, at in faults)
        chosen = next(at.path for _, at in faults if len(at.path) == depth)
        faults = [(fault, at) for fault, at in faults if at.path == chosen]
        faults = [pair for pair in faults if not pair[0]["type"].endswith("_type")] or faults
    else:
        faults = faults[:1]
    return _describe([dict(fault) for fault, _ in faults], faults[0][1], file)


def _unknown_key(at: _FieldPath, value: object, file: object) -> InputError:
    *parents, key = at.path
    valid = [name for model in at.models for name in _keys(model)]
    close = nearest(key, valid)
    if close is not None:
        wanted = f"`{'.'.join([*parents, close])}` (the nearest valid key)"
    else:
        wanted = "one of " + ", ".join(f"`{name}`" for name in valid)
    return InputError(f"unknown key `{key}`", file=file, field=".".join(at.path), value=value, wanted=wanted)


def _describe(faults: list[dict[str, Any]], at: _FieldPath, file: object) -> InputError:
    field = ".".join(at.path) or None
    kind, value, message = faults[0]["type"], faults[0]["input"], faults[0]["msg"]
    if kind == "missing":
        return InputError("is missing", file=file, field=field)
    if kind in ("value_error", "assertion_error"):
        # A rule about several keys names them itself; the whole section would only hide it.
        shown = None if isinstance(value, Mapping) else value
        return InputError(re.sub(r"^(Value|Assertion) error, ", "", message), file=file, field=field, value=shown)
    problem = "is empty (null)" if value is None else "wrong value"
    wanted = " or ".join(dict.fromkeys(map(_wanted, faults)))
    if kind == "literal_error" and isinstance(value, str):
        close = nearest(value, re.findall(r"'([^']*)'", message))
        wanted += f" (nearest: {close!r})" if close is not None else ""
    return InputError(problem, file=file, field=field, value=value, wanted=wanted)


def _wanted(fault: dict[str, Any]) -> str:
    """What pydantic would have accepted, in our words where its own are about Python."""
    kind, message, context = fault["type"], fault["msg"], fault.get("ctx", {})
    if kind == "string_type":
        # YAML makes numbers, dates and booleans of unquoted words: `classes: [no, yes]`.
        scalar = fault["input"] is not None and not isinstance(fault["input"], list | dict)
        return "a string (in quotes)" if scalar else "a string"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "a mapping"
    if kind in ("list_type", "tuple_type"):
        return "a list"
    if kind in ("too_short", "too_long"):
        bound, size = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        return f"at {bound} {size} item{'s' if size != 1 else ''}"
    if kind == "string_pattern_mismatch":
        return f"a string that matches {context['pattern']}"
    return message.removeprefix("Input should be ")


def _field_path(loc: tuple[int | str, ...], model: type[BaseModel]) -> _FieldPath:
    """Walks `loc` down the types of `model`, leaving out what pydantic added to it."""
    path: list[str] = []
    union: int | None = None
    candidates: list[Any] = [model]
    models: tuple[type[BaseModel], ...] = ()
    for part in loc:
        members = [member for kind in candidates for member in _members(kind)]
        if len(members) > 1 and any(_is_union(kind) for kind in candidates):
            union = len(path) if union is None else union
            candidates = [member for member in members if _is_named(member, str(part))] or members
            continue
        if part == "[key]":
            continue
        models = tuple(kind for kind in members if _is_model(kind))
        path.append(str(part))
        candidates = [inner for kind in members for inner in _step_into(kind, part)]
    return _FieldPath(tuple(path), models, union)


def _step_into(kind: Any, part: int | str) -> list[Any]:
    """The type found under key or index `part` of a value of type `kind`; empty if it has no such thing."""
    if _is_model(kind):
        return [field.annotation for name, field in kind.model_fields.items() if part in (name, field.alias)]
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return list(args[1:2])
    if origin is tuple and isinstance(part, int) and Ellipsis not in args:
        return list(args[part : part + 1])
    return list(args[:1])


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_union(kind: Any) -> bool:
    """Whether pydantic puts a member's name into the path: a union of two or more types besides None."""
    return len(_members(kind)) > 1


def _members(kind: Any) -> list[Any]:
    kind = _bare(kind)
    if get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    return [inner for member in get_args(kind) if member is not type(None) for inner in _members(member)]


def _is_named(kind: Any, tag: str) -> bool:
    """Whether pydantic calls the union member `kind` by `tag`: its name, print form, or discriminator's value."""
    if not _is_model(kind):
        return tag in (getattr(kind, "__name__", None), str(kind)) and (get_origin(kind) is None or tag == str(kind))
    if tag == kind.__name__:
        return True
    annotations = [_bare(field.annotation) for field in kind.model_fields.values()]
    return any(get_origin(each) is Literal and tag in map(str, get_args(each)) for each in annotations)
