"""Trees of values: overrides `a.b=c`, dotted keys, and one tree on top of another."""

from __future__ import annotations

from typing import Any

import yaml

from datasets_manifest.errors import InputError, first_line

Tree = dict[str, Any]


def apply_override(tree: Tree, override: str) -> None:
    """Set the value that `a.b=c` states, c being YAML. Raises InputError: no such form, or no section."""
    key, equals, written = override.partition("=")
    if not equals or not key.strip():
        wanted = "a key, = and its value, for example train.epochs=5"
        raise InputError("is not of the form a.b=c", field="--set", value=override, wanted=wanted)
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        problem = f"has a value that is not YAML ({first_line(error)})"
        raise InputError(
            problem, field=f"--set {key}", value=written, wanted="quotes around it, for the shell too"
        ) from None
    *parents, last = key.strip().split(".")
    node = tree
    for depth, parent in enumerate(parents):
        node = _section(node, parent)
        if not isinstance(node, dict):
            section = ".".join(parents[: depth + 1])
            problem = "has a value of its own and no keys below it"
            raise InputError(problem, field=f"--set {section}", value=node, wanted=f"{section}=…")
    node[last] = value


def merge(base: Tree, over: Tree) -> Tree:
    """`over` on top of `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def flatten(tree: Any, prefix: str = "") -> Tree:
    """Dotted keys → values that are no sections."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def differing(one: Tree, other: Tree) -> list[str]:
    """Dotted keys whose values differ; a section that is left out on one side has none of its keys there."""
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def pop(tree: Tree, key: str) -> Any:
    """Take the value of a dotted key out, and its section if nothing is left of it. Raises KeyError: not stated."""
    parent, _, rest = key.partition(".")
    if not rest:
        return tree.pop(parent)
    section = tree[parent]
    if not isinstance(section, dict):
        raise KeyError(key)
    value = pop(section, rest)
    if not section:
        del tree[parent]
    return value


def put(tree: Tree, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = _section(tree, parent)
    tree[last] = value


def _section(tree: Tree, name: str) -> Any:
    """What stands under a name; an empty section where nothing does (`lora: null`)."""
    if tree.get(name) is None:
        tree[name] = {}
    return tree[name]
