"""Pictures' files are looked for before a run: each folder is listed once, and of many in a store some are asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import storage
from datasets_manifest.records import picture_check
from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.records.picture_check import missing, require_pictures
from tests.object_store import object_store


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with object_store("photos") as client:
        yield client


def corpus_of(images: list[list[str]]) -> Corpus:
    """One domain whose record `r<i>` has images[i], behind a domain without pictures."""
    images = [[], [], *images]
    ids = [f"r{number - 2}" for number in range(len(images))]
    table = pa.table({"id": ids, "images": pa.array(images, pa.list_(pa.string()))})
    parts = [Part("bare", "train", 0, 2), Part("shop", "train", 2, len(images))]
    return Corpus(table, ["a", "b"], parts, [None, None], [])


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "few").mkdir()
    for number in range(40):
        (tmp_path / "many" / f"{number}.jpg").touch()
    (tmp_path / "few" / "a.jpg").touch()
    (tmp_path / "many" / "folder.jpg").mkdir()
    os.symlink(tmp_path / "few" / "a.jpg", tmp_path / "many" / "link.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "many" / "broken.jpg")
    files = [f"{tmp_path}/many/{number}.jpg" for number in (*range(42), "folder", "link", "broken")]
    files += [f"{tmp_path}/few/{name}.jpg" for name in "ab"] + [f"{tmp_path}/none/{number}.jpg" for number in range(20)]
    asked: list[str] = []
    monkeypatch.setattr(storage, "is_file", lambda file: asked.append(file) or os.path.isfile(file))
    gone = missing(files)
    assert gone == {file for file in files if not os.path.isfile(file)} and len(gone) == 25
    assert sorted(asked) == [f"{tmp_path}/few/a.jpg", f"{tmp_path}/few/b.jpg"]
    listed: list[str] = []
    listing = os.scandir
    monkeypatch.setattr(picture_check.os, "scandir", lambda folder: listed.append(str(folder)) or listing(folder))
    monkeypatch.setattr(picture_check, "_ROWS", 8)  # the table in many parts
    monkeypatch.setattr(picture_check, "_FEW", 0)
    [note] = require_pictures(corpus_of([[file] for file in files if "/many/" in file]), 0.5)
    assert note.startswith(
        f"shop, train: 4 of 45 records lack a picture file, first record r40: {tmp_path}/many/40.jpg"
    )
    assert listed.count(f"{tmp_path}/many") == 1


def test_of_many_pictures_in_a_store_some_are_asked_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(400):
        if number % 10:
            client.put_object(Bucket="photos", Key=f"p/{number}.jpg", Body=b"x")
    corpus = corpus_of([[f"s3://photos/p/{number}.jpg"] for number in range(400)])
    monkeypatch.setattr(picture_check, "MOST_ASKED", 100)
    asked: list[str] = []
    is_file = storage.is_file
    monkeypatch.setattr(storage, "is_file", lambda file: asked.append(file) or is_file(file))
    drawn, lacking = require_pictures(
        corpus, 0.1
    )  # of 400 exactly 0.1 are gone, of those that are drawn a few more or less
    assert drawn == (
        "shop, train: of 400 records with pictures in a store 100 were looked at; the first epoch finds what the others lack"
    )
    assert "of 100 records lack a picture file, first record r" in lacking
    assert len(set(asked)) == 100
    with pytest.raises(InputError, match=r"of 100 records lack a picture file, .*at most a fraction of 0\.01"):
        require_pictures(corpus, 0.01)
    monkeypatch.setattr(picture_check, "ASKED_AGAIN", 20)
    asked.clear()
    assert "in a store 20 were looked at" in require_pictures(corpus, 0.5, again=True)[0] and len(set(asked)) == 20
    monkeypatch.setattr(picture_check, "MOST_ASKED", 400)
    assert require_pictures(corpus, 0.1)[0].startswith("shop, train: 40 of 400 records lack")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        InputError, match=r"the pictures' store cannot be reached .*bucket photos at http://127\.0\.0\.1:1"
    ):
        require_pictures(corpus_of([["s3://photos/p/1.jpg"]]), 0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="links to oneself")
def test_a_folder_that_cannot_be_listed_has_no_pictures(tmp_path: Path) -> None:
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    files = [f"{tmp_path}/circle/{number}.jpg" for number in range(20)]
    assert missing(files) == set(files)
