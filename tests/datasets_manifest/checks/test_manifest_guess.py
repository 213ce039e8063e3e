"""`m2can data init`: the guessed manifest reads the file it was guessed from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from datasets_manifest.checks.manifest_guess import guess_manifest
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records.readers import ReadResult, read_split
from services.cli.main import app

MOODS = ["nature", "city", "Nature", "N/A"]


def shop(folder: Path) -> Path:
    """A CSV with the flaws of an export: semicolons, cp1252, spellings, several pictures in a cell, pictures elsewhere."""
    rows = ["Artwork No;Description;Files;Mood;Price"]
    for n in range(40):
        mood = MOODS[2 if n == 0 else 3 if n == 1 else n % 2]
        rows.append(f"w{n};Blick über Häuser, Nr. {n};{n}.jpg,{n}b.jpg;{mood};{n},50")
    (folder / "shop.csv").write_bytes("\n".join(rows).encode("cp1252"))
    (folder / "scans" / "large").mkdir(parents=True)
    for n in range(40):
        (folder / "scans" / "large" / f"{n}.jpg").write_bytes(b"x")
    return folder / "shop.csv"


def written(file: Path) -> ReadResult:
    guess = guess_manifest(file)
    guess.manifest.write_text(guess.text, encoding="utf-8")
    return read_split(load_manifest(guess.manifest), "train")


def test_an_export_is_understood(tmp_path: Path) -> None:
    file = shop(tmp_path)
    result = CliRunner().invoke(app, ["data", "init", str(file), "--json"])
    assert json.loads(result.stdout) == {"manifest": str(tmp_path / "shop.yaml"), "problem": None}
    text = (tmp_path / "shop.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {
        "schema_version": 1,
        "name": "shop",
        "classes": ["city", "nature"],
        "labels": {"Nature": "nature", "N/A": None},
        "defaults": {
            "separator": ";",
            "encoding": "cp1252",
            "columns": {"id": "Artwork No", "text": "Description", "image": "Files", "label": "Mood"},
            "image_separator": ",",
            "image_root": "scans/large",
        },
        "splits": {"train": {"records": "shop.csv"}},
        "split": {"val": 0.15, "seed": 1, "stratify": True},
    }
    assert "# in `Mood`: nature 19, city 19, Nature 1, N/A 1" in text
    assert "25 of 50 pictures that were tried are there" in text
    assert "not used: Price" in text
    manifest = load_manifest(tmp_path / "shop.yaml")
    sizes = [read_split(manifest, split).table.num_rows for split in manifest.splits]
    assert sum(sizes) == 40
    assert sizes[1] > 5


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = shop(tmp_path)
    (tmp_path / "shop.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists already and is not overwritten"):
        guess_manifest(file)
    assert CliRunner().invoke(app, ["data", "init", str(file)]).exit_code != 0
    assert (tmp_path / "shop.yaml").read_text() == "mine"


def test_plain_names_need_no_columns(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"id": n, "text": "a b", "image": ["x.png"], "label": n % 2}) for n in range(4))
    )
    (tmp_path / "val.jsonl").write_text('{"text": "a", "label": 1}')
    result = written(tmp_path / "train.jsonl")
    content = yaml.safe_load((tmp_path / "manifest.yaml").read_text())
    assert "defaults" not in content and "split" not in content
    assert content["splits"] == {"train": {"records": "train.jsonl"}, "val": {"records": "val.jsonl"}}
    assert result.table["label"].to_pylist() == [0, 1, 0, 1]


def test_columns_are_told_by_their_contents(tmp_path: Path) -> None:
    rows = [f"{n},some words of prose {n},p{n}.png,{'ab'[n % 2]}" for n in range(12)]
    (tmp_path / "x.csv").write_text("\n".join(["c1,c2,c3,c4", *rows]))
    table = written(tmp_path / "x.csv").table
    assert table["texts"][0].as_py() == ["some words of prose 0"]
    assert table["images"][0].as_py() == [f"{tmp_path}/p0.png"]
    assert table["label"].to_pylist()[:2] == [0, 1]


def test_endings_are_tried_for_pictures_named_without(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "k1.png").write_bytes(b"x")
    (tmp_path / "r.csv").write_text("text,image,label\na b,k1,x\na c,k2,y\n")
    assert written(tmp_path / "r.csv").table["images"][0].as_py() == [f"{tmp_path}/pics/k1.png"]


@pytest.mark.parametrize("content", ["text,other\nx y,1\n", "a\n1\n", 'text,label\n"x\x85# y","l\x07\u2028b: [c"\n'])
def test_what_cannot_be_guessed_is_left_to_the_user_in_valid_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.csv").write_text(content, encoding="utf-8")
    result = CliRunner().invoke(app, ["data", "init", str(tmp_path / "r.csv"), "--json"])
    assert result.exit_code == 0
    assert "classes" in json.loads(result.stdout)["problem"]
    assert isinstance(yaml.safe_load((tmp_path / "r.yaml").read_text(encoding="utf-8"))["classes"], list)
