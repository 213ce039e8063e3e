"""The results page says what the benchmarks' files say; the pages build; the reference is whole."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.tables import PAGE, page

ROOT = Path(__file__).parents[1]


def test_results_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.tables writes it"


def test_pages_and_their_numbers_are_those_of_code_and_benchmarks() -> None:
    from docs.reference import pages, with_measured_numbers

    made = pages()
    assert {"recipe.md", "commands.md", "failure.md"} <= {file.name for file in made}
    stale = [file.name for file, content in made.items() if file.read_text(encoding="utf-8") != content]
    assert stale == [], "python -m docs.reference writes them"
    assert sum("<!-- " in content for content in made.values()) >= 3
    (measured,) = re.findall(r"([\d.]+)<!-- faults:0.seconds -->", (ROOT / "docs" / "scaling.md").read_text())
    assert with_measured_numbers("in 7<!-- faults:0.seconds --> s") == f"in {measured}<!-- faults:0.seconds --> s"


@pytest.mark.slow
def test_pages_build_with_all_links(tmp_path: Path) -> None:
    mkdocs = str(Path(sys.executable).with_name("mkdocs"))  # as `make docs` calls it: this folder is not in its path
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {
        page.name: page.read_text(encoding="utf-8").replace("<wbr>", "") for page in (tmp_path / "site").glob("*.html")
    }
    assert "train.batch_size" in pages["recipe.html"] and "m2can data check" in pages["commands.html"]
    assert "class_confusion" in pages["api.html"] and 'class="formula"' in pages["method.html"]
    assert not [name for name, text in pages.items() if "{{" in text or '<script src="http' in text]


def test_every_recipe_key_is_in_the_reference() -> None:
    from docs.reference import recipe_page
    from trainers.recipe import Recipe

    keys = Recipe.model_validate({"data": {"sources": ["a"], "target": "b"}}).flat()
    shown = recipe_page()
    assert not [key for key in keys if f"`{key}`" not in shown]


def test_every_recipe_key_has_its_meaning_and_the_default_that_counts() -> None:
    from docs.reference import recipe_page
    from trainers.recipe import make_recipe
    from trainers.recipe.data_sections import Lora

    data = {"sources": ["a"], "target": "b"}
    recommended = make_recipe({"data": data}).flat()
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in recipe_page().splitlines() if line.startswith("| `")]
    told = {row[0].strip("`"): row[1:] for row in rows}
    of_lora = {f"encoders.{part}.lora.{key}" for part in ("text", "picture") for key in Lora.model_fields}
    assert told.keys() == recommended.keys() | of_lora  # a section that is left out is one key
    assert told["encoders.text.lora"][:2] == ["keys below or nothing", "`null`"]
    assert not [key for key, row in told.items() if len(row) < 3 or not row[2] or row[2].startswith("(`published`")]
    assert told["sam.rho"][1] == f"`{recommended['sam.rho']}`" and "(`published`: `0.05`)" in told["sam.rho"][2]
    assert "each source and the target" in told["objective.discriminators"][2]


def test_every_room_is_in_the_table_of_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rooms = [file.parent for root in linter["root_packages"] for file in (ROOT / root).glob("*/__init__.py")]
    rooms += [ROOT / "m2can", ROOT / "tuning"]
    named = [str(room.relative_to(ROOT)) for room in rooms if room.name != "sweeps"]
    assert len(named) > 15
    assert not [room for room in named if f"`{room}/`" not in text]


def test_worked_examples_are_short() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(examples) == 4 and max(len(example.splitlines()) for example in examples) < 40


def test_errors_of_the_faq_are_errors_of_the_code() -> None:
    packages = ("datasets_manifest", "trainers", "services")
    code = "".join(file.read_text(encoding="utf-8") for name in packages for file in (ROOT / name).rglob("*.py"))
    messages = re.findall(r"^### `([^`]+)`$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.M)
    assert len(messages) > 8
    missing = [part for text in messages for part in re.split(r":? ?… ?", text) if part not in code]
    assert missing == []
