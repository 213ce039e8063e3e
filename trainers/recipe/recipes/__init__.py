"""Recipes that come with the project, found by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def packaged_recipe(name: str) -> Path | None:
    """The file of the recipe `name` (AVA, PCCD, …), None if there is none."""
    known = {path.stem: path for path in Path(str(files(__name__))).glob("*.yaml")}
    return known.get(name)
