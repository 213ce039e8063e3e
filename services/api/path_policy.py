"""Which paths and addresses a submitted recipe may name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets_manifest.errors import InputError
from trainers.recipe import Recipe

_NAME = re.compile(r"[A-Za-z0-9][\w.:-]*(/[A-Za-z0-9][\w.-]*)?")


def confine(recipe: Recipe, roots: list[Path], tracking_uri: str) -> None:
    """Refuse a recipe that reads or writes outside of `roots`, or tracks to another MLflow than `tracking_uri`.

    Raises:
        InputError: names the field.
    """
    data, text, picture = recipe.data, recipe.encoders.text, recipe.encoders.picture
    paths = [(f"data.sources.{n}", path) for n, path in enumerate(data.sources)]
    paths += [("data.target", data.target), ("run.storage", recipe.run.storage)]
    weights = [("encoders.text.weights", text.weights), ("encoders.picture.weights", picture.weights)]
    paths += [(field, path) for field, path in weights if "/" in path or path.endswith((".safetensors", ".pt", ".pth"))]
    for field, name in (("encoders.text.name", text.name), ("encoders.picture.name", picture.name)):
        name = name.removeprefix("hf:")
        if name.startswith("/"):
            paths.append((field, name))
        elif _NAME.fullmatch(name) is None or ".." in name:
            raise InputError(
                "is neither a name nor an absolute path", field=field, value=name, wanted="NAME or ORG/NAME"
            )
    if recipe.encoders.features is not None:
        paths.append(("encoders.features", recipe.encoders.features))
    if recipe.train.has_few_labels and recipe.train.target_labels != "few":
        paths.append(("train.target_labels", recipe.train.target_labels))
    start = recipe.train.start_from
    if start is not None and not start.startswith("models:/") and ("/" in start or start.startswith((".", "~"))):
        paths.append(("train.start_from", start))
    for field, path in paths:
        confine_path(field, path, roots)
    if recipe.tracking.uri not in (None, tracking_uri):
        raise InputError("is not this service's MLflow", field="tracking.uri", wanted="nothing: the service sets it")
    if recipe.cluster.address is not None:
        raise InputError("is set by the service", field="cluster.address", wanted="nothing")


def confine_path(field: str, path: str, roots: list[Path]) -> str:
    """The path, with symbolic links followed. Raises InputError: it is not absolute, or leads outside of `roots`."""
    wanted = f"an absolute path below {' or '.join(map(str, roots))}"
    if "\0" in path or not path.startswith("/"):
        raise InputError("is not an absolute path", field=field, value=path, wanted=wanted)
    try:
        real = Path(os.path.realpath(path))
    except (OSError, ValueError):
        raise InputError("is not a path", field=field, value=path, wanted=wanted) from None
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        raise InputError("leads outside", field=field, value=path, wanted=wanted)
    return str(real)
