"""The recipe of the README and of the tutorial, as written, learns from as many records as the tutorial generates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs_blocks import ROOT, blocks


def written_recipe(page: str) -> dict[str, Any]:
    (written,) = [block.body for block in blocks(ROOT / page) if "sources:" in block.body and "encoders:" in block.body]
    tree: dict[str, Any] = yaml.safe_load(written)
    for place in ("sources", "target"):
        del tree["data"][place]
    tree.pop("run", None)
    return tree


def test_readme_and_tutorial_have_the_same_recipe() -> None:
    assert written_recipe("README.md") == written_recipe("docs/tutorial.md")


@pytest.mark.slow
def test_the_documents_recipe_learns(tmp_path: Path) -> None:
    """Against chance (a third), the sources' classes are learned, and the target's by its unlabelled records."""
    from datasets_manifest.postcards.generate import write_postcards
    from tests.trainers.tiny_run import make_loop
    from trainers.preflight.preparation import prepare
    from trainers.recipe import make_recipe
    from trainers.validators import choose_candidate

    command = re.search(r"postcards --train (\d+) --val (\d+)", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"))
    assert command is not None
    train, val = map(int, command.groups())
    *sources, target = (str(path) for path in write_postcards(tmp_path / "postcards", train=train, val=val).values())
    tree = written_recipe("docs/tutorial.md")
    tree["data"] |= {"sources": sources, "target": target}
    loop = make_loop(prepare(make_recipe(tree | {"run": {"storage": str(tmp_path / "runs")}})))
    metrics, inputs = [], []
    for _ in range(loop.epochs):
        found, scored = loop.run_epoch()
        metrics.append(found)
        inputs.append(scored.validator_inputs)
    selection = loop.recipe.selection
    chosen = metrics[choose_candidate(selection.validator, inputs, selection.gate)]
    assert chosen["source/val/accuracy"] > 0.6
    assert chosen["target/val/accuracy"] > 0.45
    assert metrics[-1]["uacr/kept"] > 0
