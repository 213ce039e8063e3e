"""Each message that the FAQ quotes as ours is one that the code can produce."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from trainers.recipe import Recipe, make_recipe

ROOT = Path(__file__).parents[1]
ROOMS = ("datasets_manifest", "trainers", "tuning", "services", "m2can")
# Messages of others that users meet while they run ours, and commands.
NOT_OURS = {"InvalidAuthToken", "Invalid Host header", "m2can predict --workers"}


def quoted() -> list[str]:
    """What stands in backticks in a heading."""
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]


def constants(file: Path) -> list[str]:
    """All string constants of a file, those between the values of f-strings among them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@pytest.fixture(scope="module")
def product() -> list[list[str]]:
    return [constants(file) for room in ROOMS for file in (ROOT / room).rglob("*.py")]


def test_the_faq_quotes_messages() -> None:
    assert len(quoted()) > 8
    assert set(quoted()) >= NOT_OURS


@pytest.mark.parametrize("message", [message for message in quoted() if message not in NOT_OURS])
def test_one_file_has_all_words_of_each_message(message: str, product: list[list[str]]) -> None:
    parts = [part for part in re.split(r"\s*…\s*|: ", message) if part]
    assert any(all(any(part in text for text in file) for part in parts) for file in product), parts


def test_recipe_keys_and_variables_that_the_answers_name_exist(product: list[list[str]]) -> None:
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    sections = "|".join(Recipe.model_fields)
    keys = re.findall(rf"`((?:{sections})\.[a-z_.]+)", text)
    known = make_recipe({"data": {"sources": ["a"], "target": "b"}}).flat()
    assert keys
    assert [key for key in keys if key not in known] == []
    variables = set(re.findall(r"\bM2CAN_[A-Z_]+", text))
    assert [name for name in variables if not any(name in text for file in product for text in file)] == []
