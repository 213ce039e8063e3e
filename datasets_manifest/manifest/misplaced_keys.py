"""Manifests whose keys stand at the wrong level or whose mappings are the wrong way round: the right form is told.

These are looked for before pydantic validates: it would only say that a key is unknown.
"""

from __future__ import annotations

from typing import Any

import yaml

from datasets_manifest.errors import InputError, composed, nearest
from datasets_manifest.manifest.keys import Columns, Manifest, Reading, Split
from datasets_manifest.manifest.storage import Location

_ROLES = set(Columns.model_fields)
_OF_READING = set(Reading.model_fields)
_OF_MANIFEST = set(Manifest.model_fields)


def refuse_misplaced_keys(content: dict[Any, Any], file: Location) -> None:
    """Raises InputError with the form that is wanted; a manifest with other faults passes."""
    for key, value in content.items():
        if key in _ROLES - {"id"} and isinstance(value, str):
            raise _misplaced(file, key, value, {"defaults": {"columns": {key: value}}})
        if key in _OF_READING:
            raise _misplaced(file, key, value, {"defaults": {key: value}}, "for all splits, or below one split")
        if key == "records":
            raise _misplaced(file, key, value, {"splits": {"train": {"records": value}}})
    if isinstance(content.get("defaults"), dict):
        _check_reading(content["defaults"], "defaults", file)
    splits = content.get("splits")
    for name, split in splits.items() if isinstance(splits, dict) else ():
        if isinstance(split, str):
            wanted = _form({"splits": {name: {"records": split}}})
            raise InputError("not a mapping", file=file, field=f"splits.{name}", value=split, wanted=wanted)
        if isinstance(split, dict):
            _check_reading(split, f"splits.{name}", file)
    _check_labels(content.get("labels"), content.get("classes"), file)


def _check_reading(keys: dict[Any, Any], where: str, file: Location) -> None:
    """`keys` are those of a split or of `defaults`."""
    for key, value in keys.items():
        if key in _ROLES and isinstance(value, str):
            raise _misplaced(file, f"{where}.{key}", value, {"columns": {key: value}}, f"in `{where}`")
        if key == "sample":  # of manifests before 0.2; no run ever read it
            recipe = {"data": {"samples_per_epoch": value}}
            raise _misplaced(file, f"{where}.sample", value, recipe, "in the recipe")
        if key in _OF_MANIFEST:
            raise _misplaced(file, f"{where}.{key}", value, {key: value}, "at the top of the manifest")
    columns = keys.get("columns")
    if not isinstance(columns, dict):
        return
    for key, value in columns.items():
        if key in Split.model_fields:
            raise _misplaced(file, f"{where}.columns.{key}", value, {key: value}, f"in `{where}`, beside `columns`")
        if isinstance(value, str) and key not in _ROLES and value in _ROLES:
            turned = {value: key for key, value in columns.items() if isinstance(value, str) and value in _ROLES}
            problem = "the mapping is the wrong way round: what is wanted stands first, the file's column second"
            wanted = _form({"columns": turned})
            raise InputError(problem, file=file, field=f"{where}.columns.{key}", value=value, wanted=wanted)


def _check_labels(labels: Any, classes: Any, file: Location) -> None:
    if not isinstance(labels, dict) or not isinstance(classes, list):
        return
    known = [composed(name) for name in classes if isinstance(name, str)]
    for found, name in labels.items():
        field = f"labels.{found}"
        if isinstance(found, bool) or not isinstance(found, str | int):
            # YAML makes a boolean of `yes` and a date of 2020-01-01.
            problem = f"YAML reads this as a {type(found).__name__}, which stands in no record"
            raise InputError(problem, file=file, field=field, wanted="a string (in quotes)")
        if not isinstance(name, str) or composed(name) in known:
            continue
        if isinstance(found, str) and composed(found) in known:
            turned = {value: key for key, value in labels.items() if isinstance(value, str) and key in classes}
            problem = "the mapping is the wrong way round: what stands in the records comes first, the class second"
            raise InputError(problem, file=file, field=field, value=name, wanted=_form({"labels": turned}))
        close = nearest(name, [each for each in classes if isinstance(each, str)])
        wanted = f"one of {', '.join(map(str, classes))}" + (f" (nearest: {close})" if close is not None else "")
        raise InputError("no such class", file=file, field=field, value=name, wanted=wanted)


def _misplaced(file: Location, field: str, value: Any, form: dict[str, Any], where: str = "") -> InputError:
    wanted = f"{_form(form)} {where}".rstrip()
    return InputError("the key stands at the wrong level", file=file, field=field, value=value, wanted=wanted)


def _form(content: dict[str, Any]) -> str:
    """As one would write it: `columns: {text: caption}`."""
    written = yaml.safe_dump(content, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
    return f"`{written.strip()[1:-1][:400]}`"
