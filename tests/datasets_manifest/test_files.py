"""Files and folders appear whole or not at all, and files.py is the only place that renames a draft."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from datasets_manifest.errors import first_line
from datasets_manifest.files import whole_file, whole_folder, write_atomically

PRODUCT = ("datasets_manifest", "trainers", "tuning", "services", "m2can")


def test_a_file_appears_whole(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.txt"
    write_atomically(file, "one")
    with whole_file(file, durable=True) as draft:
        draft.write_text("two")
        assert file.read_text() == "one"
    assert file.read_text() == "two"
    assert os.listdir(file.parent) == ["b.txt"]


def test_a_file_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "b.txt"
    write_atomically(file, b"one")
    with pytest.raises(KeyboardInterrupt), whole_file(file) as draft:
        draft.write_text("tw")
        raise KeyboardInterrupt
    assert file.read_text() == "one"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_a_folder_appears_whole_with_the_rights_of_any_other(tmp_path: Path) -> None:
    folder, other = tmp_path / "a" / "model", tmp_path / "other"
    other.mkdir()
    with pytest.raises(OSError, match="full"), whole_folder(folder) as draft:
        (draft / "half").write_text("")
        raise OSError("full")
    assert not (tmp_path / "a").exists()
    with whole_folder(folder) as draft:
        (draft / "whole").write_text("")
        assert not folder.exists()
    assert os.listdir(tmp_path / "a") == ["model"]
    assert folder.stat().st_mode == other.stat().st_mode


def test_a_folder_with_something_in_it_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(OSError, match="not empty"), whole_folder(folder) as draft:
        (draft / "new").write_text("")
    assert os.listdir(folder) == ["old"]
    with whole_folder(folder, replace=True) as draft:
        (draft / "new").write_text("")
    assert os.listdir(folder) == ["new"]
    assert os.listdir(tmp_path) == ["data"]


def test_nothing_else_in_the_product_renames_or_cuts_errors() -> None:
    root = Path(__file__).parents[2]
    files = [f for room in PRODUCT for f in (root / room).rglob("*.py")]
    assert len(files) > 100
    renaming = re.compile(r"\bos\.(replace|rename)\(|shutil\.move\(|\.rename\(")
    cutting = re.compile(r"str\(error\)(\.strip\(\))?\.splitlines\(\)( or .*)?\)?\[0\]")
    for pattern, own in ((renaming, "files.py"), (cutting, "errors.py")):
        found = [file for file in files if pattern.search(file.read_text(encoding="utf-8"))]
        assert [file for file in found if file != root / "datasets_manifest" / own] == []


def test_first_line_is_short_and_never_empty() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(MemoryError()) == "MemoryError"
    assert len(first_line(ValueError("x" * 1000))) == 300
