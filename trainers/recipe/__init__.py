"""Recipes: pydantic sections, presets, overrides, schema versions, and the recipes that come along.

Imports validators and published (both only for names), never torch modules.
"""

from trainers.recipe.loading import load_recipe, make_recipe, read_tree, stated_values
from trainers.recipe.overrides import apply_override
from trainers.recipe.recipe import Recipe

__all__ = ["Recipe", "apply_override", "load_recipe", "make_recipe", "read_tree", "stated_values"]
