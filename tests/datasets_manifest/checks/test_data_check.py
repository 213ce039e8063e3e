"""The data report finds what is wrong, and only that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets_manifest.checks import picture_facts
from datasets_manifest.checks.data_check import DataReport, check
from datasets_manifest.checks.picture_facts import PictureFacts, read_all_facts
from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import LoadedManifest, load_manifest
from datasets_manifest.records.corpus import load_corpus
from datasets_manifest.records.picture_check import require_pictures
from trainers.reports.data_check_page import page

Records = list[dict[str, Any]]
CLASSES = ["bad", "good"]


def picture(folder: Path, name: str, seed: int, side: int = 40) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))
    return name


def domain(folder: Path, splits: dict[str, Records]) -> LoadedManifest:
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(records))
    listed = "".join(f"\n  {split}: {{records: {split}.json}}" for split in splits)
    (folder / "manifest.yaml").write_text(f"name: {folder.name}\nclasses: [bad, good]\nsplits:{listed}\n")
    return load_manifest(folder / "manifest.yaml")


def records(folder: Path, start: int, count: int) -> Records:
    return [
        {
            "id": f"r{n}",
            "text": [f"text number {n}"],
            "image": [picture(folder, f"{n}.png", n)],
            "label": CLASSES[n % 2],
        }
        for n in range(start, start + count)
    ]


def kinds(report: DataReport) -> dict[str, tuple[str, int]]:
    return {finding.kind: (finding.severity, finding.count) for finding in report.findings}


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, Records]:
    folder = tmp_path / "shop"
    return {"train": records(folder, 0, 40), "val": records(folder, 40, 20)}


def test_clean_data_have_no_findings(tmp_path: Path, clean: dict[str, Records]) -> None:
    report = check([domain(tmp_path / "shop", clean)])
    assert report.findings == []
    train = report.splits[0]
    assert (train.records, train.labels, train.pictures) == (40, {"bad": 20, "good": 20}, 40)
    assert train.shorter_side == {"min": 40, "median": 40, "p95": 40, "max": 40}
    assert train.words["median"] == 3
    assert not report.harmful


def cut(folder: Path, split: Records) -> None:
    file = folder / split[0]["image"][0]
    file.write_bytes(file.read_bytes()[:-200])


def no_image(folder: Path, split: Records) -> None:
    (folder / split[0]["image"][0]).write_text("words")


def away(folder: Path, split: Records) -> None:
    for record in split[:10]:
        (folder / record["image"][0]).unlink()


def tiny(folder: Path, split: Records) -> None:
    picture(folder, split[0]["image"][0], 1, side=9)


def copied(folder: Path, split: Records) -> None:
    split.append(split[0] | {"id": "another", "label": "good"})


def only_one_class(folder: Path, split: Records) -> None:
    for record in split:
        record["label"] = "bad"


def wrong_label(folder: Path, split: Records) -> None:
    split[3]["label"] = split[5]["label"] = "gud"
    split[9]["label"] = "GOOD"


def another_name(folder: Path, split: Records) -> None:
    for record in split:
        record["images"] = record.pop("image")


def empty(folder: Path, split: Records) -> None:
    split[5] |= {"text": [], "image": []}
    split[6]["text"] = ["  "]


@pytest.mark.parametrize(
    ("spoil", "wanted", "harmful"),
    [
        (cut, {"truncated": ("warning", 1)}, False),
        (no_image, {"not-an-image": ("warning", 1)}, False),
        (away, {"missing": ("fatal", 10)}, True),
        (tiny, {"tiny": ("warning", 1)}, False),
        (copied, {"copies": ("warning", 1), "copies-disagree": ("warning", 1)}, False),
        (only_one_class, {"one-class": ("fatal", 1)}, True),
        (wrong_label, {"bad-labels": ("fatal", 3)}, True),
        (another_name, {"absent-column": ("fatal", 1), "no-picture": ("warning", 40)}, True),
        (empty, {"no-content": ("warning", 1), "no-text": ("note", 1)}, False),
    ],
)
def test_findings(
    tmp_path: Path,
    clean: dict[str, Records],
    spoil: Callable[[Path, Records], None],
    wanted: dict[str, tuple[str, int]],
    harmful: bool,
) -> None:
    spoil(tmp_path / "shop", clean["train"])
    report = check([domain(tmp_path / "shop", clean)])
    assert kinds(report) == wanted
    assert report.harmful == harmful


def test_every_bad_label_is_listed_with_its_count(tmp_path: Path, clean: dict[str, Records]) -> None:
    wrong_label(tmp_path / "shop", clean["train"])
    manifest = domain(tmp_path / "shop", clean)
    report = check([manifest])
    found = next(finding for finding in report.findings if finding.kind == "bad-labels")
    file = tmp_path / "shop" / "train.json"
    assert found.examples == [
        f"'gud': 2 records, first {file}, record 4 (id 'r3')",
        f"'GOOD': 1 record, first {file}, record 10 (id 'r9')",
    ]
    assert "one of 'bad', 'good'" in found.message
    assert report.splits[0].unlabelled == 3


def test_classes_that_differ_are_found_at_the_domain_that_has_them(tmp_path: Path, clean: dict[str, Records]) -> None:
    manifests = [domain(tmp_path / name, clean) for name in ("one", "two", "three")]
    two = tmp_path / "two" / "manifest.yaml"
    two.write_text(two.read_text().replace("[bad, good]", "[Bad, good]"))
    manifests[1] = load_manifest(two)
    (found,) = [finding for finding in check(manifests).findings if finding.kind == "classes"]
    assert (found.severity, found.domain) == ("fatal", "two")
    assert "`labels: {Bad: bad}`" in found.message


@pytest.mark.parametrize(
    ("there", "named", "difference"),
    [
        ("a/B.png", "a/b.png", "B.png is there, upper and lower case differ"),
        ("a/b.png", "a\\b.png", "with / for \\"),
        ("a/b.png", "a/b.png ", "without the blank at the end"),
        ("a/b.png", "A\\b.png", "with / for \\ and upper and lower case differ"),
        ("a/b c.png", "a/b%20c.png", "without % signs"),
        ("a/b.jpeg", "a/b.jpg", "b.jpeg is there, with another ending"),
        ("a/b.png", "a /b.png", "blanks differ"),
    ],
)
def test_why_a_picture_is_missing(tmp_path: Path, there: str, named: str, difference: str) -> None:
    shop = tmp_path / "shop"
    (shop / "a").mkdir(parents=True)
    picture(shop, there, 1)
    content = [{"text": f"x {n}", "label": n % 2, "image": [named]} for n in range(2)]
    found = next(f for f in check([domain(shop, {"train": content})]).findings if f.kind == "missing")
    assert found.examples == [found.examples[0]] and "2 records, the first train-1; " in found.examples[0]
    assert difference in found.examples[0]
    manifest = str(shop / "manifest.yaml")
    (tmp_path / "shop2").mkdir()
    (tmp_path / "shop2" / "manifest.yaml").write_text((shop / "manifest.yaml").read_text().replace("shop", "shop2"))
    (tmp_path / "shop2" / "train.json").write_text(json.dumps([record | {"image": []} for record in content]))
    corpus = load_corpus([str(tmp_path / "shop2" / "manifest.yaml")], manifest)
    with pytest.raises(InputError, match=re.escape(difference)):
        require_pictures(corpus, 0.1)


def test_training_is_told_of_absent_columns_and_classes(tmp_path: Path, clean: dict[str, Records]) -> None:
    another_name(tmp_path / "shop", clean["train"])
    manifests = [domain(tmp_path / name, {"train": clean["train"]}) for name in ("shop", "forum")]
    for manifest in manifests:
        text = Path(manifest.path).read_text().replace("[bad, good]", "[bad, good, fair]")
        Path(manifest.path).write_text(text)
    notes = load_corpus([str(manifests[0].path)], str(manifests[1].path)).notes
    assert "shop, train: no file has a column `image`; nearest: `images`" in notes
    assert "no source has a record of class fair" in notes


def test_a_guessed_encoding_is_noted(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes("text,label\ncafé,bad\nthé,good\n".encode("cp1252"))
    (tmp_path / "m.yaml").write_text("name: a\nclasses: [bad, good]\nsplits: {train: {records: r.csv}}\n")
    findings = check([load_manifest(tmp_path / "m.yaml")]).findings
    assert [(f.severity, f.kind) for f in findings if f.kind in ("guess", "absent-column")] == [
        ("note", "absent-column"),
        ("note", "guess"),
    ]


def test_leaks_between_splits_and_domains(tmp_path: Path, clean: dict[str, Records]) -> None:
    shop = tmp_path / "shop"
    clean["val"][:2] = [dict(record) for record in clean["train"][:2]]
    clean["val"][2]["id"] = "r7"
    other = records(tmp_path / "forum", 100, 10)
    (tmp_path / "forum" / other[0]["image"][0]).write_bytes((shop / clean["train"][9]["image"][0]).read_bytes())
    report = check([domain(shop, clean), domain(tmp_path / "forum", {"train": other})])
    found = {(f.kind, f.domain, f.split): (f.severity, f.count) for f in report.findings}
    assert found == {
        ("shared-records", "shop", "val"): ("fatal", 2),
        ("shared-ids", "shop", "val"): ("note", 1),
        ("shared-pictures", "forum", "train"): ("warning", 1),
    }


def test_the_page_shows_every_split_and_escapes(tmp_path: Path, clean: dict[str, Records]) -> None:
    clean["train"][0]["text"] = ["<script>alert(1)</script>"]
    clean["train"][1]["image"] = ["<b>.png"]
    manifest = domain(tmp_path / "shop", {"train": clean["train"][:8], "val": clean["val"]})
    html = page(check([manifest]), [manifest])
    assert "shop / train" in html
    assert "shop / val" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 7 + 12


def test_a_cluster_finds_the_same(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / picture(tmp_path, f"{n}.png", n)) for n in range(30)] + [str(tmp_path / "none.png")]
    here = read_all_facts(paths)
    assert here[paths[-1]] == PictureFacts("missing", 0, 0, 0, None)
    monkeypatch.setattr(picture_facts, "IN_PROCESS", 5)
    assert read_all_facts(paths) == here
