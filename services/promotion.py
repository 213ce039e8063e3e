"""Aliases of registered models: promote (behind a gate, if wanted), roll back, compare, delete. Changes are recorded."""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from datasets_manifest.errors import InputError
from services.assessment import assess
from services.errors import ServiceUnavailable
from services.registry import recipe_of
from trainers.failures import is_absent
from trainers.model.predictor import Predictor
from trainers.tracking.registered_models import REGISTERED, ModelVersion, fetch_bundle, find_model

CHAMPION = "champion"
_RECORD = "m2can.promotion."
Metric = Literal["accuracy", "macro_f1"]


class PromotionRefused(ServiceUnavailable):
    """The version is not better than the one it should beat; the message says by how much."""


@dataclass(frozen=True)
class Gate:
    """Promote only a version that is better than `than` (an alias or a version) on labelled records.

    If no version has the alias yet, every version passes.
    """

    than: str
    data: str | Path
    split: str = "val"
    metric: Metric = "accuracy"


@dataclass(frozen=True)
class Promotion:
    """One change of an alias, as it is recorded with the model's name in the registry."""

    alias: str
    action: Literal["promote", "rollback"]
    before: str | None
    after: str
    by: str
    time: str
    evidence: dict[str, Any] = field(default_factory=dict)


def promote(
    client: MlflowClient, reference: str, alias: str = CHAMPION, gate: Gate | None = None, by: str | None = None
) -> Promotion:
    """Point `alias` at a version.

    Raises:
        InputError: no such version or manifest, or not a valid alias.
        PromotionRefused: the gate's metric is not higher than that of the version to beat.
    """
    if re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", alias) is None:
        raise InputError("cannot be an alias", field="--to", value=alias, wanted="a name such as champion")
    version = find_model(client, reference)
    evidence = _pass_gate(client, version, gate) if gate is not None else {}
    return _move(client, version.name, by, alias=alias, action="promote", after=version.version, evidence=evidence)


def rollback(client: MlflowClient, name: str, alias: str = CHAMPION, by: str | None = None) -> Promotion:
    """Give `alias` back to the version that had it before the last promotion that was not rolled back.

    Raises:
        InputError: there was none, or that version was deleted.
    """
    befores: list[str | None] = []  # of promotions that were not rolled back
    for record in history(client, name):
        if record.alias == alias and record.action == "promote":
            befores.append(record.before)
        elif record.alias == alias and befores:
            befores.pop()
    earlier = befores[-1] if befores else None
    if earlier is None:
        wanted = "a promotion in the place of another version that was not rolled back"
        raise InputError(f"no version had @{alias} before", field="NAME", value=name, wanted=wanted)
    version = find_model(client, f"{name}:{earlier}")
    return _move(client, name, by, alias=alias, action="rollback", after=version.version)


def history(client: MlflowClient, name: str) -> list[Promotion]:
    """All recorded changes of a model's aliases, oldest first."""
    try:
        tags = client.get_registered_model(name).tags
    except MlflowException as error:
        if not is_absent(error):
            raise
        why = f"is not in the registry ({error.message})"
        raise InputError(why, field="NAME", value=name, wanted=REGISTERED) from None
    return [Promotion(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_RECORD)]


def compare(
    client: MlflowClient, first: str, second: str, data: str | Path | None = None, split: str = "val"
) -> dict[str, Any]:
    """Tags and recipe keys in which two versions differ and, with a manifest, both models' metrics on it."""
    versions = [find_model(client, reference) for reference in (first, second)]
    names = [f"{v.name}:{v.version}" for v in versions]
    result: dict[str, Any] = {
        "versions": names,
        "tags": _differences(versions[0].tags, versions[1].tags),
        "recipe": _differences(*(recipe_of(client, version) for version in versions)),
    }
    if data is not None:
        result["metrics"] = [_assess(client, version, data, split) for version in versions]
    return result


def delete(client: MlflowClient, reference: str) -> ModelVersion:
    """Remove one version, named with its number, from the registry. Its run stays.

    Raises:
        InputError: no number is given, or an alias points at it.
    """
    if re.search(r"[:/]\d+$", reference) is None:
        raise InputError("names no version", field="MODEL", value=reference, wanted="NAME:version")
    version = find_model(client, reference)
    if version.aliases:
        wanted = "a version without alias; promote another one first"
        raise InputError("is in use", field="MODEL", value=", ".join(f"@{a}" for a in version.aliases), wanted=wanted)
    client.delete_model_version(version.name, version.version)
    return version


def _pass_gate(client: MlflowClient, version: ModelVersion, gate: Gate) -> dict[str, Any]:
    number = gate.than if gate.than.isdigit() else _holder(client, version.name, gate.than)
    other = find_model(client, f"{version.name}:{number}") if number else None
    own = _assess(client, version, gate.data, gate.split)
    evidence = {"metric": gate.metric, "on": str(gate.data), "split": gate.split, "records": own["records"]}
    evidence["value"] = own[gate.metric]
    if other is None:
        return evidence
    to_beat = _assess(client, other, gate.data, gate.split)[gate.metric]
    if not own[gate.metric] > to_beat:
        names = f"{version.name}:{version.version} {other.name}:{other.version}"
        raise PromotionRefused(
            f"{version.name}:{version.version} is not promoted: {gate.metric} {own[gate.metric]:.4f} on "
            f"{own['records']} records is not higher than {to_beat:.4f} of version {other.version} ({gate.than}); "
            f"`m2can models compare {names}` shows how they differ"
        )
    return evidence | {"than": other.version, "than_value": to_beat}


def _assess(client: MlflowClient, version: ModelVersion, data: str | Path, split: str) -> dict[str, Any]:
    bundle = fetch_bundle(client, f"{version.name}:{version.version}")
    return assess(Predictor.load(bundle), data, split)


def _holder(client: MlflowClient, name: str, alias: str) -> str | None:
    aliases = client.get_registered_model(name).aliases
    return str(aliases[alias]) if alias in aliases else None


def _move(client: MlflowClient, name: str, by: str | None, **change: Any) -> Promotion:
    """Record the change (fields of Promotion), then set the alias to version `after`."""
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now / 1e9))
    before = _holder(client, name, change["alias"])
    record = Promotion(before=before, by=by or _user(), time=stamp, **change)
    # The record is written first: an unrecorded change could not be rolled back.
    key = f"{_RECORD}{now:020d}.{secrets.token_hex(2)}"
    client.set_registered_model_tag(name, key, json.dumps(asdict(record)))
    try:
        client.set_registered_model_alias(name, record.alias, record.after)
    except Exception:
        client.delete_registered_model_tag(name, key)
        raise
    return record


def _differences(first: dict[str, str], second: dict[str, str]) -> dict[str, list[str | None]]:
    keys = sorted(first.keys() | second.keys())
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid {os.getuid()}"
