"""Manifests: what loads, and that every fault is an InputError naming file, field, value and what was wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.keys import Columns
from datasets_manifest.manifest.loading import MAX_MANIFEST_BYTES, LoadedManifest, load_manifest

GOOD: dict[str, Any] = {
    "name": "cards",
    "classes": ["low", "high"],
    "splits": {"train": {"records": "train.jsonl", "columns": {"text": "caption"}}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train.jsonl", "more.jsonl"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def write(folder: Path, content: object, name: str = "data.yaml") -> Path:
    """The content as a manifest file; anything but a string is written as JSON, which is YAML, too."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with one value at a dotted path put in."""
    content = json.loads(json.dumps(GOOD))
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[key] = value
    return content


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_yaml_and_json_give_the_same_manifest(folder: Path) -> None:
    yaml_text = """
name: cards
classes: [low, high]
splits:
  train: {records: train.jsonl, columns: {text: caption}}
"""
    from_yaml = load_manifest(write(folder, yaml_text))
    from_json = load_manifest(str(write(folder, GOOD, "data.json")))
    assert from_yaml.manifest == from_json.manifest
    assert from_yaml.name == "cards"
    assert from_yaml.classes == ["low", "high"]
    split = from_yaml.splits["train"]
    assert (split.format, split.image_root) == ("auto", None)
    assert (split.allow_absolute, split.allow_outside_root) == (False, False)
    assert split.columns == Columns(id=None, text="caption", image="image", label="label")


def test_relative_paths_start_at_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pictures").mkdir()
    content = changed("splits.train.records", ["train.jsonl", "more.jsonl"])
    content["splits"]["train"]["image_root"] = "pictures"
    write(folder, content)
    monkeypatch.chdir(folder)
    loaded = load_manifest("data.yaml")
    monkeypatch.chdir("/")
    assert loaded.path == folder / "data.yaml"
    assert loaded.folder == folder
    assert loaded.record_paths("train") == (folder / "train.jsonl", folder / "more.jsonl")
    assert loaded.image_root("train") == folder / "pictures"


def test_image_root_defaults_to_the_manifests_folder(folder: Path) -> None:
    assert load_manifest(write(folder, GOOD)).image_root("train") == folder


def test_byte_order_mark_is_tolerated(folder: Path) -> None:
    path = folder / "data.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert load_manifest(path).name == "cards"


def test_manifest_is_frozen(folder: Path) -> None:
    loaded = load_manifest(write(folder, GOOD))
    with pytest.raises(ValidationError):
        loaded.manifest.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "field", "found", "wanted"),
    [
        ("clases", ["a", "b"], "clases", ["a", "b"], "`classes`"),
        ("splits.train.colums", {}, "splits.train.colums", {}, "`splits.train.columns`"),
        ("splits.train.columns.txt", "c", "splits.train.columns.txt", "c", "`splits.train.columns.text`"),
        ("splits.train.zzz", 1, "splits.train.zzz", 1, "`allow_outside_root`, `records`"),
        ("name", "a b", "name", "a b", "matches"),
        ("name", "", "name", "", "matches"),
        ("name", "x" * 65, "name", "x" * 65, "matches"),
        ("name", "x\n", "name", "x\n", "matches"),
        ("name", 5, "name", 5, "a string (in quotes)"),
        ("classes", ["only"], "classes", ["only"], "at least 2 items"),
        ("classes", "low", "classes", "low", "a list"),
        ("classes", ["a", False], "classes.1", False, "a string (in quotes)"),
        ("classes", ["a", ""], "classes.1", "", "at least 1 character"),
        ("splits", {}, "splits", {}, "at least 1 item"),
        ("splits", {"a b": {"records": "train.jsonl"}}, "splits.a b", "a b", "matches"),
        ("splits.train", ["train.jsonl"], "splits.train", ["train.jsonl"], "a mapping"),
        ("splits.train.records", {}, "splits.train.records", {}, "a string or a list"),
        ("splits.train.records", [], "splits.train.records", [], "at least 1 item"),
        ("splits.train.records", ["train.jsonl", 7], "splits.train.records.1", 7, "a string"),
        ("splits.train.records", "gone.jsonl", "splits.train.records", "gone.jsonl", "a file at"),
        ("splits.train.records", ["train.jsonl", "gone"], "splits.train.records.1", "gone", "a file at"),
        ("splits.train.records", ".", "splits.train.records", ".", "a file at"),
        ("splits.train.records", "a\0b", "splits.train.records", "a\0b", "a file at"),
        ("splits.train.records", "~nobody/x", "splits.train.records", "~nobody/x", "a file at"),
        ("splits.train.records", "ftp://b/k", "splits.train.records", "ftp://b/k", "a local path"),
        ("splits.train.image_root", "gone", "splits.train.image_root", "gone", "a folder at"),
        ("splits.train.format", "jsnl", "splits.train.format", "jsnl", "(nearest: 'jsonl')"),
        ("split", {"val": 0}, "split.val", 0, "greater than 0"),
        ("split", {"val": 0.5, "seed": "3"}, "split.seed", "3", "a valid integer"),
        ("split", {"val": 0.5, "seed": True}, "split.seed", True, "a valid integer"),
        ("splits.train.allow_absolute", "yes", "splits.train.allow_absolute", "yes", "a valid boolean"),
        ("schema_version", 2, "schema_version", 2, "1"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, path: str, value: object, field: str, found: object, wanted: str) -> None:
    error = refusal(write(folder, changed(path, value)))
    assert error.field == field
    assert error.value == found
    assert wanted in str(error.wanted)


@pytest.mark.parametrize(
    ("classes", "problem"), [(["a", "b", "a"], "'a' is named twice"), ([" a", "b"], "white space")]
)
def test_class_names_are_unique_and_clean(folder: Path, classes: list[str], problem: str) -> None:
    error = refusal(write(folder, changed("classes", classes)))
    assert (error.field, error.value) == ("classes", classes)
    assert problem in error.problem


@pytest.mark.parametrize("key", ["name", "classes", "splits", "splits.train.records"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    content = changed("name", "cards")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    del place[last]
    error = refusal(write(folder, content))
    assert (error.field, error.problem) == (key, "is missing")


def test_null_is_named(folder: Path) -> None:
    error = refusal(write(folder, changed("name", None)))
    assert (error.field, error.problem) == ("name", "is empty (null)")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a manifest"),
        ("- a", "not a manifest"),
        ("x: [", "not YAML"),
        ("x: 2001-99-99", "cannot be parsed"),
        ("name: a\nname: b\n", "'name' is written twice"),
        ("name: !!python/object:os.system x", "could not determine a constructor"),
        ("[" * 1500, "cannot be parsed"),
        ("\x01", "cannot be parsed"),
        ("1: 2", "unknown key `1`"),
    ],
)
def test_what_is_no_manifest_is_refused(folder: Path, text: str, problem: str) -> None:
    assert problem in refusal(write(folder, text)).problem


@pytest.mark.parametrize("text", ['{"name": "x",}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_bad_json_is_refused(folder: Path, text: str) -> None:
    refusal(write(folder, text, "data.json"))


def test_merged_yaml_keys_are_not_taken_for_repeated_ones(folder: Path) -> None:
    text = """
name: cards
classes: [low, high]
splits:
  train: &train {records: train.jsonl, format: csv}
  val: &val {<<: *train, format: jsonl}
  test: {<<: *val}
"""
    assert load_manifest(write(folder, text)).splits["test"].format == "jsonl"


def test_aliases_that_multiply_are_refused_at_once(folder: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{this}: &{this} [{', '.join(['*' + last] * 9)}]"
        for last, this in zip("abcdefghijk", "bcdefghijkl", strict=True)
    ]
    error = refusal(write(folder, "\n".join([*lines, "classes: *l", "name: x"])))
    assert len(str(error)) < 2000


def test_files_that_cannot_be_manifests(folder: Path) -> None:
    assert refusal(folder / "gone.yaml").problem == "no such file"
    assert "folder" in refusal(folder).problem
    (folder / "binary").write_bytes(b"name: \xff\xfe")
    assert "not UTF-8" in refusal(folder / "binary").problem
    (folder / "large").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    assert "too large" in refusal(folder / "large").problem
    with pytest.raises(InputError):
        load_manifest("a\0b")
    with pytest.raises(InputError):
        load_manifest("x" * 5000)


def test_unknown_split_names_the_nearest(folder: Path) -> None:
    loaded: LoadedManifest = load_manifest(write(folder, GOOD))
    with pytest.raises(InputError, match=r"no such split; found 'trian'; wanted one of train \(nearest: train\)"):
        loaded.split("trian")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(["fuzz.yaml", "fuzz.json"]))
def test_random_bytes_are_refused_and_nothing_else(folder: Path, content: bytes, name: str) -> None:
    (folder / name).write_bytes(content)
    refusal(folder / name)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["records", "x"]), inner, max_size=3),
    max_leaves=3,
)
_PATHS = ["name", "classes", "splits", "splits.train", "splits.train.records", "splits.train.columns", "new"]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=_JSON, path=st.sampled_from(_PATHS))
def test_any_value_anywhere_loads_or_is_refused(folder: Path, value: object, path: str) -> None:
    file = write(folder, changed(path, value), "fuzz.json")
    try:
        load_manifest(file)
    except InputError as error:
        assert str(file) in str(error)
