"""Layouts of real data sets on disk: templates, class folders, the catalog, links, packed files."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import catalog
from datasets_manifest.manifest.loading import load_manifest
from datasets_manifest.records import text_files
from datasets_manifest.records.readers import read_split
from tests.datasets_manifest.reading import column, read, refusal

ENTRIES = {
    "AVA": ("953619.jpg", ["953619.jpg"]),
    "PCCD": ("1-a.jpg", ["1-a.jpg"]),
    "RPCD": ("2014-x1.jpg", ["2014/photocritique/images/2014-x1.jpg"]),
    "TumEmo": ("12345", ["all_data/12345.jpg"]),
    "Yelp": ("-7bQ_x", ["photos/-7/-7bQ_x.jpg"]),
    "Twitter": ("76/98.jpg", ["data/76/7698-1.jpg", "data/76/7698-10.jpg"]),
}


def touch(file: Path, content: bytes = b"x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", ENTRIES)
def test_a_catalog_name_stands_for_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(catalog.DATA_ROOT, str(tmp_path))
    entry, paths = ENTRIES[name]
    for path in paths:
        touch(tmp_path / name / path)
    records = [{"text": ["a"], "label": 0, "image": [entry]}, {"text": ["b"], "label": 1, "image": []}]
    for split in ("train", "val"):
        (tmp_path / name / f"{split}.json").write_text(json.dumps(records))
    manifest = load_manifest(f"catalog:{name}")
    assert manifest.name == name
    assert manifest.classes == catalog.find(name).classes
    table = read_split(manifest, "val").table
    assert table["images"].to_pylist() == [[str(tmp_path / name / path) for path in paths], []]
    assert table["label"].to_pylist() == [0, 1]


def test_the_data_root_comes_from_the_environment_then_from_the_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    monkeypatch.setenv(catalog.CONFIG, str(config))
    monkeypatch.delenv(catalog.DATA_ROOT, raising=False)
    with pytest.raises(InputError, match=r"--data-root, M2CAN_DATA_ROOT.*config\.yaml"):
        load_manifest("catalog:AVA")
    config.write_text("data_root: sets")
    assert catalog.data_root() == tmp_path / "sets"
    config.write_text("data_root: s3://bucket/sets")
    assert catalog.data_root() == "s3://bucket/sets"
    monkeypatch.setenv(catalog.DATA_ROOT, "/elsewhere")
    assert catalog.data_root() == Path("/elsewhere")
    monkeypatch.delenv(catalog.DATA_ROOT)
    for content in ("data_rot: x", "- a", "data_root: 5", "data_root: a\nother: b", "a: [", "\0"):
        config.write_text(content)
        with pytest.raises(InputError, match=r"config\.yaml"):
            catalog.data_root()


def test_places_in_a_reference_win(tmp_path: Path) -> None:
    touch(tmp_path / "my lists" / "a&b.json", b'[{"text": "a", "image": "p.jpg"}]')
    lists = str(tmp_path / "my lists" / "a&b.json")
    reference = catalog.reference("AVA", root=str(tmp_path), train=lists, val=lists)
    table = read_split(load_manifest(reference), "train").table
    assert table["images"].to_pylist() == [[str(tmp_path / "p.jpg")]]
    for wrong in ("catalog:AVA?rot=/x", "catalog:Ava", "catalog:AVA/x", "catalog:postcards", "catalog:"):
        with pytest.raises(InputError):
            load_manifest(wrong)


def test_every_entry_of_the_catalog_is_whole() -> None:
    entries = catalog.entries()
    assert set(entries) == {*ENTRIES, "postcards"}
    for entry in entries.values():
        assert set(entry.counts) == {"train", "val"}
        assert bool(entry.layout) != bool(entry.domains)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{stm}.jpg", "nearest: {stem}"),
        ("{entry.__class__}", "no field"),
        ("{stem!r}", "no field"),
        ("{stem:>9}", "no field"),
        ("{0}", "no field"),
        ("{", "Single '{'"),
        ("all.jpg", "same picture"),
    ],
)
def test_templates_that_cannot_be_filled(tmp_path: Path, template: str, says: str) -> None:
    error = refusal(tmp_path, "r.json", [{"image": "a"}], image_template=template)
    assert error.field == "splits.train.image_template"
    assert says in str(error)


def test_a_template_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    for entry in ("../x", "../../x/y", "{stem}/../../../x"):
        error = refusal(tmp_path, "r.json", [{"image": entry}], image_template="{folder}/{file}.jpg")
        assert error.problem in ("the path leaves the image root", "an absolute path")


def test_class_folders(tmp_path: Path) -> None:
    for path in ("negative/a.JPG", "negative/deep/b.png", "positive/c.webp", "d.gif", ".hidden/e.png", "negative/n.db"):
        touch(tmp_path / "tree" / path)
    touch(tmp_path / "tree" / "negative" / "a.txt", b"Grau.")
    (tmp_path / "m.json").write_text(
        json.dumps(
            {
                "name": "tree",
                "classes": ["positive", "negative"],
                "splits": {"train": {"records": "tree", "format": "folders"}},
            }
        )
    )
    table = read_split(load_manifest(tmp_path / "m.json"), "train").table
    assert table["id"].to_pylist() == ["d.gif", "negative/a.JPG", "negative/deep/b.png", "positive/c.webp"]
    assert table["label"].to_pylist() == [-1, 1, 1, 0]
    assert table["texts"].to_pylist() == [[], ["Grau."], [], []]
    assert table["images"].to_pylist()[2] == [str(tmp_path / "tree" / "negative/deep/b.png")]
    touch(tmp_path / "tree" / "positiv" / "x.png")
    with pytest.raises(InputError, match=r"positiv/x\.png.*no such class; found 'positiv'.*nearest: 'positive'"):
        read_split(load_manifest(tmp_path / "m.json"), "train")


@pytest.mark.parametrize(
    ("split", "field"),
    [
        ({"records": "gone"}, "splits.train.records"),
        ({"records": "m.json"}, "splits.train.records"),
        ({"records": [".", "."]}, "splits.train.records"),
        ({"records": ".", "image_root": "."}, "splits.train.image_root"),
        ({"records": ".", "columns": {"text": "t"}}, "splits.train.columns"),
        ({"records": "."}, None),
    ],
)
def test_class_folders_that_cannot_be_used(tmp_path: Path, split: dict[str, Any], field: str | None) -> None:
    content = {"name": "t", "classes": ["a", "b"], "splits": {"train": {"format": "folders", **split}}}
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_split(load_manifest(tmp_path / "m.json"), "train")
    assert caught.value.field == field


def test_links_do_not_lead_out_of_the_image_root(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside" / "secret.png")
    root = tmp_path / "real"
    touch(root / "in.png")
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "inner.png").symlink_to(root / "in.png")
    (root / "circle").symlink_to(root / "circle")
    (tmp_path / "pics").symlink_to(root)  # the root itself may be a link
    for name in ("link.png", "folder/secret.png", "folder/gone.png"):
        error = refusal(tmp_path, "r.json", [{"image": name}], image_root="pics")
        assert error.problem == "a symbolic link leads out of the image root"
        allowed = read(tmp_path, "r.json", [{"image": name}], image_root="pics", allow_outside_root=True)
        assert column(allowed, "images") == [[str(tmp_path / "pics" / name)]]
    inside = ["in.png", "inner.png", "gone.png", "circle"]
    result = read(tmp_path, "r.json", [{"image": inside}], image_root="pics")
    assert column(result, "images") == [[str(tmp_path / "pics" / name) for name in inside]]


def test_packed_text_files(tmp_path: Path) -> None:
    for name, content in {
        "r.jsonl.gz": b'{"text": "a"}\n{"text": "b"}',
        "r.csv.gz": b"text,label\na,0\nb,1\n",
        "r.TSV.GZ": b"text\tlabel\na\t0\nb\t1\n",
        "r.json.gz": b'[{"text": "a"}, {"text": "b"}]',
    }.items():
        halves = gzip.compress(content[:5]) + gzip.compress(content[5:])  # files that were appended to
        assert column(read(tmp_path, name, halves), "texts") == [["a"], ["b"]]
    whole = gzip.compress(os.urandom(500))
    for damaged in (whole[:-20], b"\x1f\x8b", b"", b"plain", whole[:100] + b"\0\0\0" + whole[103:], whole + b"tail"):
        error = refusal(tmp_path, "r.jsonl.gz", damaged)
        assert error.field is None or error.field.startswith("splits")
    for name in ("r.zip", "r.parquet.gz", "r.jsonl.bz2"):
        assert refusal(tmp_path, name, whole).problem == "unknown format"


def test_bombs_are_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b" " * 3_000_000)
    assert refusal(tmp_path, "r.jsonl.gz", bomb).problem.startswith("the split is empty")
    monkeypatch.setattr(text_files, "_LEAST_LIMIT", 2_000_000)
    assert refusal(tmp_path, "r.jsonl.gz", bomb).problem == "unpacks to far more than its size"
    nulls = pa.table({"text": pa.nulls(5_000_000, pa.string()), "image": pa.nulls(5_000_000, pa.string())})
    pq.write_table(nulls, tmp_path / "n.parquet")
    assert refusal(tmp_path, "n.parquet", (tmp_path / "n.parquet").read_bytes()).problem.startswith("unpacks")


def folders(root: Path, **split: Any) -> Any:
    content = {
        "name": "t",
        "classes": ["cat", "dog"],
        "splits": {"train": {"records": "set", "format": "folders", **split}},
    }
    (root / "m.json").write_text(json.dumps(content))
    return read_split(load_manifest(root / "m.json"), "train")


def test_a_class_folder_may_be_a_link_inside_the_root(tmp_path: Path) -> None:
    touch(tmp_path / "set" / "cat" / "a.png")
    touch(tmp_path / "set" / ".store" / "b.png")
    (tmp_path / "set" / "dog").symlink_to(".store")
    (tmp_path / "set" / "cat" / "again").symlink_to(tmp_path / "set")  # a circle
    result = folders(tmp_path)
    assert column(result, "id") == ["cat/a.png", "dog/b.png"]
    assert column(result, "label") == [0, 1]
    assert result.left_alone == ("1 file is left alone (neither pictures nor texts), e.g. cat/again",)


def test_a_class_folder_that_leads_out_of_the_root_is_named_or_allowed(tmp_path: Path) -> None:
    touch(tmp_path / "set" / "cat" / "a.png")
    touch(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"a symbolic link leads out of the folder; found 'dog'.*allow_outside_root"):
        folders(tmp_path)
    assert column(folders(tmp_path, allow_outside_root=True), "id") == ["cat/a.png", "dog/b.png"]


def test_files_of_class_folders_that_are_left_alone_are_named(tmp_path: Path) -> None:
    for path in ("cat/a.png", "cat/b.HEIC", "cat/c.svg", "dog/n.db", "dog/p.jfif"):
        touch(tmp_path / "set" / path)
    touch(tmp_path / "set" / "cat" / "lost.txt", b"No picture.")
    touch(tmp_path / "set" / "dog" / "p.TXT", b"A dog.")
    (tmp_path / "set" / "bird").symlink_to(tmp_path / "nowhere")
    result = folders(tmp_path)
    assert column(result, "texts") == [[], ["A dog."]]
    assert result.left_alone == (
        "2 files are left alone (of a picture format that is not read here), e.g. cat/b.HEIC",
        "1 file is left alone (texts without a picture of their name), e.g. cat/lost.txt",
        "2 files are left alone (neither pictures nor texts), e.g. bird",
    )
    (tmp_path / "set" / "cat" / "a.png").unlink()
    (tmp_path / "set" / "dog" / "p.jfif").unlink()
    with pytest.raises(InputError, match=r"no picture in the folder; found .*1 of \.heic"):
        folders(tmp_path)
