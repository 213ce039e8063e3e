"""Labels and image paths in records: what is understood, what is refused, and that nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets_manifest.reading import column, read, refusal


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (0, 0),
        (2, 2),
        (1.0, 1),
        ("1", 1),
        ("1.0", 1),
        (" 2 ", 2),
        ("neutral", 1),
        (" neutral\t", 1),
        (None, -1),
        ("", -1),
        ("  ", -1),
        (float("nan"), -1),
    ],
)
def test_labels_that_are_understood(tmp_path: Path, label: object, expected: int) -> None:
    assert column(read(tmp_path, "r.json", [{"text": "x", "label": label}]), "label") == [expected]


@pytest.mark.parametrize(
    "label",
    [
        3,
        -1,
        10**30,
        True,
        False,
        0.5,
        float("inf"),
        "3",
        "-1",
        "0.5",
        "Neutral",
        "nan",
        [1],
        {},
        "٣",
        "1e0",
    ],
)
def test_labels_that_are_refused(tmp_path: Path, label: object) -> None:
    records = [{"text": "x", "label": 0}, {"text": "x", "label": label}]
    error = refusal(tmp_path, "r.json", records)
    assert (error.file, error.field) == (tmp_path / "r.json", "record 2, label")
    assert error.value == label or label != label
    assert "'negative', 'neutral', 'positive'" in str(error.wanted)
    assert "index from 0 to 2" in str(error.wanted)


def test_a_misspelt_label_names_the_nearest(tmp_path: Path) -> None:
    error = refusal(tmp_path, "r.csv", "id,text,label\nk7,x,positve\n")
    assert error.field == "line 2 (id 'k7'), label"
    assert "(nearest: 'positive')" in str(error.wanted)


def test_a_missing_label_column_is_unlabelled(tmp_path: Path) -> None:
    assert column(read(tmp_path, "r.csv", "text\nx\ny\n"), "label") == [-1, -1]


@pytest.mark.parametrize("classes", [["1", "2", "3"], ["1", "0"], ["0", "x", "1"]])
def test_numbers_as_class_names_are_not_taken_for_indexes(tmp_path: Path, classes: list[str]) -> None:
    for index, name in enumerate(classes):
        result = read(tmp_path, "r.json", [{"text": "x", "label": name}], classes=classes)
        assert column(result, "label") == [index]
    for label in (0, 1, 1.0, "7"):
        error = refusal(tmp_path, "r.json", [{"text": "x", "label": label}], classes=classes)
        assert error.field == "record 1, label"
        assert "index from" not in str(error.wanted)


def test_a_number_that_is_no_class_name_is_not_taken_for_an_index(tmp_path: Path) -> None:
    assert refusal(tmp_path, "r.json", [{"text": "x", "label": "0"}], classes=["1", "2", "3"]).value == "0"
    assert refusal(tmp_path, "r.csv", "text,label\nx,2\n", classes=["0", "x", "1"]).value == "2"


def test_class_names_that_are_their_own_indexes(tmp_path: Path) -> None:
    records = [{"text": "x", "label": label} for label in (0, "0", 1, "1")]
    assert column(read(tmp_path, "r.json", records, classes=["0", "1"]), "label") == [0, 0, 1, 1]


def test_paths_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    records = [{"image": ["a.jpg", "x/../b.jpg", "./c d.jpg", "..e.jpg", "~/f.jpg"]}]
    result = read(tmp_path, "r.json", records, image_root="pics")
    assert column(result, "images") == [
        [f"{tmp_path}/pics/{name}" for name in ("a.jpg", "b.jpg", "c d.jpg", "..e.jpg", "~/f.jpg")]
    ]


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", "..", "../pics2/a.jpg", "./../a"])
def test_paths_out_of_the_root_need_leave(tmp_path: Path, path: str) -> None:
    (tmp_path / "pics").mkdir()
    records = [{"id": "k", "image": ["ok.jpg", path]}]
    error = refusal(tmp_path, "r.json", records, image_root="pics")
    assert (error.field, error.value) == ("record 1 (id 'k'), image", path)
    assert "allow_outside_root" in str(error.wanted)
    refusal(tmp_path, "r.json", records, image_root="pics", allow_absolute=True)
    result = read(tmp_path, "r.json", records, image_root="pics", allow_outside_root=True)
    assert column(result, "images")[0][1] == str(Path(tmp_path, "pics", path).resolve())


@pytest.mark.parametrize("path", ["/etc/passwd", "//x", "/"])
def test_absolute_paths_need_leave(tmp_path: Path, path: str) -> None:
    error = refusal(tmp_path, "r.json", [{"image": path}], allow_outside_root=True)
    assert (error.field, error.value) == ("record 1, image", path)
    assert "allow_absolute" in str(error.wanted)
    assert column(read(tmp_path, "r.json", [{"image": path}], allow_absolute=True), "images") == [[path]]


@pytest.mark.parametrize("path", ["ftp://bucket/a.jpg", "http://x/a.jpg", "a\0b", "\ud800.jpg"])
def test_paths_that_are_no_local_files(tmp_path: Path, path: str) -> None:
    error = refusal(tmp_path, "r.json", [{"image": path}], allow_absolute=True, allow_outside_root=True)
    assert (error.field, error.value) == ("record 1, image", path)
