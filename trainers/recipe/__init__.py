"""Recipes: pydantic sections, presets, overrides, schema versions, and the recipes that come along.

Imports validators and published (both only for names), never torch modules.
"""
