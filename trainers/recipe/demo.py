"""The demo's recipe on the generated data set."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trainers.recipe.loading import make_recipe, read_tree
from trainers.recipe.recipe import Recipe


def demo_recipe(manifests: dict[str, Path], overrides: list[str]) -> Recipe:
    """recipes/demo.yaml on these manifests; the last domain is the target."""
    with_data = [f"data.sources={[str(path) for path in list(manifests.values())[:-1]]}"]
    with_data += [f"data.target={list(manifests.values())[-1]}"]
    tree = read_tree(Path(str(files("trainers.recipe.recipes") / "demo.yaml")), [*with_data, *overrides])
    return make_recipe(tree)
