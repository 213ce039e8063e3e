"""Every code block of the documents: files are written, shell blocks run page by page, what needs a cluster is parsed.

A fence's first word is its language; `{.cluster}` and the like say what a block needs that is not here. YAML and JSON with a
title become the file of that name, Python is run, `text` is what something prints.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.commands import shell_faults
from docs.reference import MADE
from services.cli.main import app

ROOT = Path(__file__).parents[1]
WRITTEN = [page for page in (ROOT / "docs").glob("*.md") if page.name not in MADE]
PAGES = sorted([*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
MARKS = {"long", "cluster", "image", "data"}
_FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    language: str
    mark: str | None
    title: str | None
    body: str


def blocks(page: Path) -> list[Block]:
    """A page's code blocks, in order."""
    found = []
    for fence in _FENCE.finditer(page.read_text(encoding="utf-8")):
        info = fence["info"]
        mark, title = re.search(r"\{\.(\w+)\}", info), re.search(r'title="([^"]+)"', info)
        found.append(Block(info.split()[0], mark and mark[1], title and title[1], fence["body"]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_marked_and_commands_exist(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("sh", "yaml", "json", "python", "text"), block
        assert block.mark in {None, *MARKS}, block
        if block.language == "sh":
            for line in block.body.replace("\\\n", " ").splitlines():
                assert shell_faults(line) == [], line
                target = re.match(r"make ([\w-]+)", line)
                assert target is None or f"\n{target[1]}:" in (ROOT / "Makefile").read_text(), line
                for module in re.findall(r"python -m ([\w.]+)", line):
                    assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), line
                for file in re.findall(r"(?:python|-f|-c) (deploy/\S+)", line):
                    assert (ROOT / file).exists(), line


def runs(page: Path) -> bool:
    return any(block.mark is None and block.language in ("sh", "python") for block in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "README.md" and runs(page)], ids=lambda p: p.name
)
def test_blocks_run(page: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.body, encoding="utf-8")
        if block.mark is not None:
            continue
        if block.language == "sh":
            for line in block.body.replace("\\\n", " ").splitlines():
                run_line(line)
        elif block.language == "python" and not block.title:
            exec(compile(block.body, str(page), "exec"), names)


def run_line(line: str) -> None:
    """A command of ours runs in this process, which has imported what it needs; everything else in a shell."""
    if line.startswith("m2can ") and not set(line) & set("|&;<>$"):
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}\n{done.output[-3000:]}\n{done.exception!r}"
        return
    shell = subprocess.run(["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, timeout=300)
    assert shell.returncode == 0, f"{line}\n{shell.stdout[-2000:]}\n{shell.stderr[-3000:]}"
