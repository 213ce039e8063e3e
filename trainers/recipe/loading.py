"""From a recipe file, overrides and a preset to a validated Recipe.

A recipe file states only what differs from its preset:

    preset: recommended            # or `published`
    data: {sources: [a/manifest.yaml, b/manifest.yaml], target: c/manifest.yaml}
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from datasets_manifest.errors import InputError, first_line, from_validation_error, nearest
from datasets_manifest.manifest.catalog import is_reference
from trainers.published.configuration import is_published_form, recipe_tree
from trainers.recipe.data_sections import Encoders
from trainers.recipe.from_version_1 import SCHEMA_VERSION, refuse_removed, to_version_2
from trainers.recipe.overrides import apply_override, merge, put
from trainers.recipe.presets import PRESETS
from trainers.recipe.recipe import Recipe
from trainers.recipe.schema_versions import Migration, migrate

MIGRATIONS: dict[int, Migration] = {1: to_version_2}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `a.b=c` overrides (values are YAML), validate.

    Raises:
        InputError: names the file, the key, the value and the nearest valid key.
    """
    return make_recipe(read_tree(path, overrides or []), Path(path))


def read_tree(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """The values a recipe file states, with `a.b=c` overrides, not yet validated.

    The file may also be a configuration of the published implementation (see trainers.published.configuration).

    Raises:
        InputError: not a YAML mapping, or an override that has no such form.
    """
    tree = _read_yaml(Path(path))
    if is_published_form(tree):
        tree = recipe_tree(tree, path)
    for override in overrides:
        apply_override(tree, override)
    return tree


def make_recipe(tree: dict[str, Any], file: Path | str | None = None) -> Recipe:
    """Validate a tree of values on top of its preset. Paths become relative to `file`'s folder.

    A tree that names no schema version is read as one of today's.
    """
    tree = migrate(
        {"schema_version": SCHEMA_VERSION, **copy.deepcopy(tree)},
        current=SCHEMA_VERSION,
        migrations=MIGRATIONS,
        file=file,
    )
    refuse_removed(tree, file)
    name = tree.get("preset", "recommended")
    if not isinstance(name, str) or name not in PRESETS:
        close = nearest(str(name), PRESETS)
        wanted = f"one of {', '.join(PRESETS)}" + (f" (nearest: {close})" if close else "")
        raise InputError("unknown preset", file=file, field="preset", value=name, wanted=wanted)
    try:
        recipe = Recipe.model_validate(merge(PRESETS[name], tree))
    except ValidationError as error:
        raise from_validation_error(error, Recipe, file) from None
    return _anchored(recipe, Path(file).resolve().parent) if isinstance(file, Path) else recipe


def stated_values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe file has to state to give `recipe`: its preset, sources and target, and what differs from the preset."""
    data = {"sources": list(recipe.data.sources), "target": recipe.data.target}
    stated: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "preset": recipe.preset, "data": data}
    wanted = recipe.flat()
    if recipe.encoders.both is not None:  # it stands for both names
        wanted = {
            key: value for key, value in wanted.items() if key not in ("encoders.text.name", "encoders.picture.name")
        }
    # Twice: a value that follows from another one (schedule.lowest_lr) differs only once that one is stated.
    for _ in range(2):
        found = make_recipe(stated).flat()
        for key, value in wanted.items():
            if found.get(key) != value:
                put(stated, key, value)
    return stated


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    def anchor(path: str) -> str:
        return path if "://" in path or is_reference(path) else str(folder / path)

    data = recipe.data
    placed = {"sources": [anchor(s) for s in data.sources], "target": anchor(data.target)}
    encoders = encoders_at(recipe.encoders, folder, Path.cwd())
    if encoders.features is not None:
        encoders = encoders.model_copy(update={"features": anchor(encoders.features)})
    train = recipe.train
    if train.target_labels not in ("unused", "few", "oracle"):
        train = train.model_copy(update={"target_labels": anchor(train.target_labels)})
    return recipe.model_copy(update={"data": data.model_copy(update=placed), "encoders": encoders, "train": train})


def encoders_at(encoders: Encoders, *folders: Path) -> Encoders:
    """With absolute paths for names and weights that are folders or files in one of `folders`: workers have another working
    folder than the command. All others stay, as a model's name on a hub."""

    def anchor(named: str) -> str:
        if named.partition(":")[0] in ("tiny", "pretrained", "random"):
            return named
        start = "hf:" if named.startswith("hf:") else ""
        places = (folder / Path(named.removeprefix(start)).expanduser() for folder in folders)
        return next((f"{start}{place.resolve()}" for place in places if place.exists()), named)

    towers = {}
    for tower in ("text", "picture"):
        section = getattr(encoders, tower)
        found = {key: anchor(getattr(section, key)) for key in ("name", "weights")}
        towers[tower] = section.model_copy(update=found)
    both = None if encoders.both is None else anchor(encoders.both)
    return encoders.model_copy(update={"both": both, **towers})


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError("there is no such file" if not file.exists() else "is a folder", file=file, wanted="a recipe")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"is not YAML ({first_line(error)})", file=file) from None
    if not isinstance(tree, dict):
        problem = "is empty" if tree is None else "is no recipe: it holds no keys"
        raise InputError(problem, file=file, value=tree, wanted="keys such as `data:`")
    return tree
