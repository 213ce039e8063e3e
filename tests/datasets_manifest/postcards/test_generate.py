"""The generated data set "postcards": the same bytes for a seed, complete files, and no label outside the content."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.postcards.generate import LABEL_SHARES, SOURCES, STAMP, TARGET, write_postcards
from datasets_manifest.postcards.words import AMBIGUOUS, CLASSES, DOMAINS, SHARED, VOICES

TRAIN, VAL = 240, 30


@pytest.fixture(scope="module")
def postcards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "postcards"
    write_postcards(out, seed=3, train=TRAIN, val=VAL)
    return out


def records(out: Path, domain: str, split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / domain / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def digests(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def explained(values: list[float], labels: list[str]) -> float:
    """Share of the variance of `values` that the label explains (eta squared)."""
    x, y = np.array(values, dtype=float), np.array(labels)
    if x.var() == 0:
        return 0.0
    between = sum((y == name).mean() * (x[y == name].mean() - x.mean()) ** 2 for name in CLASSES)
    return float(between / x.var())


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_postcards(tmp_path / name, seed=seed, train=12, val=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "other")


def test_writes_once_and_repairs_a_loss(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "postcards"
    manifests = write_postcards(out, train=6, val=3)
    before, written = digests(out), (out / STAMP).stat().st_mtime_ns
    assert write_postcards(out, train=6, val=3) == manifests
    assert (out / STAMP).stat().st_mtime_ns == written
    next((out / TARGET / "images").iterdir()).unlink()
    write_postcards(out, train=6, val=3)
    assert digests(out) == before
    write_postcards(out, train=7, val=3)
    assert len(records(out, TARGET)) == 7
    assert [path.name for path in out.parent.iterdir()] == ["postcards"]


def test_refuses_what_it_would_destroy(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="holds other files"):
        write_postcards(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        write_postcards(tmp_path / "thesis.txt")
    with pytest.raises(InputError, match=r"train.*found 0"):
        write_postcards(tmp_path / "new", train=0)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "precious"


def test_manifests_and_records(postcards: Path) -> None:
    assert (*SOURCES, TARGET) == DOMAINS
    manifests = write_postcards(postcards, seed=3, train=TRAIN, val=VAL)
    assert tuple(manifests) == DOMAINS
    for domain, path in manifests.items():
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == {
            "schema_version": 1,
            "name": domain,
            "classes": list(CLASSES),
            "splits": {"train": {"records": "train.jsonl"}, "val": {"records": "val.jsonl"}},
        }
        for split, count in (("train", TRAIN), ("val", VAL)):
            rows = records(postcards, domain, split)
            assert [row["id"] for row in rows] == [f"{domain}-{split}-{i:05d}" for i in range(count)]
            assert all(1 <= len(row["text"]) <= 3 and 1 <= len(row["image"]) <= 2 for row in rows)
            found = Counter(row["label"] for row in rows)
            for name, share in zip(CLASSES, LABEL_SHARES[domain], strict=True):
                assert abs(found[name] - share * count) <= 1


def test_pictures_are_real_files_of_the_type_they_claim(postcards: Path) -> None:
    magic = {".jpg": b"\xff\xd8\xff", ".png": b"\x89PNG"}
    for domain in DOMAINS:
        named = [
            path for split in ("train", "val") for row in records(postcards, domain, split) for path in row["image"]
        ]
        assert sorted(named) == sorted(f"images/{path.name}" for path in (postcards / domain / "images").iterdir())
        for name in named[:40]:
            path = postcards / domain / name
            assert path.read_bytes().startswith(magic[path.suffix])
            height, width, channels = cv2.imread(str(path)).shape
            assert 96 <= width <= 160 and 72 <= height <= 120 and channels == 3


def test_each_word_of_feeling_has_one_home() -> None:
    words = [word for group in SHARED.values() for word in group] + list(AMBIGUOUS)
    words += [word for voice in VOICES.values() for group in voice.own.values() for word in group]
    assert len(words) == len(set(words))
    for column in range(len(DOMAINS)):
        assert {meanings[column] for meanings in AMBIGUOUS.values()} == set(CLASSES)


def test_label_is_nowhere_but_in_the_content(postcards: Path) -> None:
    for domain in DOMAINS:
        rows = records(postcards, domain)
        labels = [row["label"] for row in rows]
        first = [postcards / domain / row["image"][0] for row in rows]
        pixels = [cv2.imread(str(path)).astype(float) for path in first]
        clues = {
            "sentences": [len(row["text"]) for row in rows],
            "words": [len(" ".join(row["text"]).split()) for row in rows],
            "characters": [len(" ".join(row["text"])) for row in rows],
            "pictures": [len(row["image"]) for row in rows],
            "order": list(range(len(rows))),
            "width": [image.shape[1] for image in pixels],
            "file size": [path.stat().st_size for path in first],
            "brightness": [image.mean() for image in pixels],
            "contrast": [image.std() for image in pixels],
            "redness": [image[..., 2].mean() - image[..., 0].mean() for image in pixels],
        }
        # by chance alone the mean is 2 / 240 = 0.8 % and one of a thousand exceeds 5.6 %
        leaks = {name: explained(values, labels) for name, values in clues.items()}
        assert max(leaks.values()) < 0.06, (domain, leaks)
