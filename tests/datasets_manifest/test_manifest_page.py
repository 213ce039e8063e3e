"""docs/manifest.md: its examples are read, and it has every key as the models describe it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from datasets_manifest.checks.manifest_guess import guess_manifest
from datasets_manifest.manifest.keys import Columns, Division, Manifest, Reading, Split
from datasets_manifest.manifest.loading import LoadedManifest, load_manifest
from datasets_manifest.records.readers import read_split
from docs.reference import manifest_rows

PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"
_BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.M | re.S)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and the pictures' folders that they speak of."""
    folder = tmp_path_factory.mktemp("page")
    for name, content in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "reviews" / "photos").mkdir()
    for picture in ("reviews/photos/18.jpg", "archive/pictures/good/a.jpg", "archive/pictures/b.jpg"):
        (folder / picture).write_bytes(b"x")
    subprocess.run([sys.executable, "gallery/write.py"], cwd=folder, check=True)
    return folder


def rows(manifest: LoadedManifest) -> dict[str, list[tuple[str, list[str], list[str], int]]]:
    """Split → (id, texts, pictures below the manifest's folder, label) of each record."""
    folder = f"{manifest.folder}/"
    return {
        split: [
            (row["id"], row["texts"], [path.removeprefix(folder) for path in row["images"]], row["label"])
            for row in read_split(manifest, split).table.to_pylist()
        ]
        for split in manifest.splits
    }


def test_the_csv_example(examples: Path) -> None:
    parts = rows(load_manifest(examples / "reviews" / "by-hand.yaml"))
    assert {split: len(part) for split, part in parts.items()} == {"train": 2, "val": 2}
    assert sorted(parts["train"] + parts["val"]) == [
        ("17", ["Quiet rooms; a bright view"], ["photos/17a.jpg", "photos/17b.jpg"], 1),
        ("18", ["Never again"], ["photos/18.jpg"], 0),
        ("19", ["Breakfast was late"], [], 0),
        ("20", ["We come again"], ["photos/20.jpg"], 1),
    ]


def test_the_guess_agrees_with_the_manifest_written_by_hand(examples: Path) -> None:
    guess = guess_manifest(examples / "reviews" / "reviews.csv")
    guess.manifest.write_text(guess.text, encoding="utf-8")
    by_hand = rows(load_manifest(examples / "reviews" / "by-hand.yaml"))
    guessed = rows(load_manifest(guess.manifest))["train"]
    assert [row[1:] for row in guessed] == [row[1:] for row in sorted(by_hand["train"] + by_hand["val"])]


def test_the_other_examples(examples: Path) -> None:
    assert rows(load_manifest(examples / "forum" / "manifest.yaml")) == {
        "train": [
            ("f1", ["A bright room.", "We come again."], ["2014/f1.jpg"], 1),
            ("f2", ["Noise all night."], [], 0),
        ],
        "val": [("f3", ["Fine."], [], 1)],
    }
    assert rows(load_manifest(examples / "gallery" / "manifest.yaml"))["train"] == [
        ("train-1", ["Gulls over the pier"], ["photos/ab/ab12.jpg", "photos/ab/ab13.jpg"], 1),
        ("train-2", ["Rain on the roof"], ["photos/cd/cd01.jpg"], -1),
    ]
    archive = load_manifest(examples / "archive" / "manifest.yaml")
    assert [(row[1], row[3]) for row in rows(archive)["train"]] == [([], -1), (["A field in June.\n"], 1)]
    assert rows(load_manifest(examples / "forum" / "elsewhere.yaml"))["train"][0][2] == ["/tmp/2014/f1.jpg"]


def test_every_key_is_on_the_page_as_the_models_describe_it() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    wanted = [row for model in (Manifest, Split, Reading, Columns, Division) for row in manifest_rows(model)]
    assert [row for row in wanted if row not in lines] == []
    assert not {line for line in lines if line.startswith("| `")} - set(wanted)


def test_the_page_is_linked() -> None:
    root = PAGE.parents[1]
    for file in ("README.md", "docs/tutorial.md", "docs/index.md", "mkdocs.yml"):
        assert "manifest.md" in (root / file).read_text(encoding="utf-8"), file
