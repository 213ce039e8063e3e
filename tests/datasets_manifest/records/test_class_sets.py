"""The classes of several data sets: the same in all, their labels in one order."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.keys import Manifest
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.records.class_sets import remap_labels, require_same_classes
from datasets_manifest.records.readers import TABLE_SCHEMA
from tests.datasets_manifest.reading import CLASSES, read


def manifest_of(path: str, classes: list[str]) -> LoadedManifest:
    content = {"name": "x", "classes": classes, "splits": {"train": {"records": "r.json"}}}
    return LoadedManifest(Manifest.model_validate(content), Path(path))


def test_class_sets_in_any_order_agree() -> None:
    require_same_classes([manifest_of("/a.yaml", ["low", "high"]), manifest_of("/b.yaml", ["high", "low"])])
    require_same_classes([manifest_of("/a.yaml", ["low", "high"])])
    require_same_classes([])


def test_class_sets_that_differ_are_refused() -> None:
    manifests = [
        manifest_of("/a.yaml", ["low", "mid", "high"]),
        manifest_of("/b.yaml", ["high", "low", "mid"]),
        manifest_of("/c.yaml", ["low", "high", "top"]),
    ]
    with pytest.raises(InputError) as caught:
        require_same_classes(manifests)
    assert (caught.value.file, caught.value.field) == (Path("/c.yaml"), "classes")
    assert "only /a.yaml has mid; only /c.yaml has top" in str(caught.value)


def test_labels_are_remapped_by_name(tmp_path: Path) -> None:
    labels = [0, 2, None, 1]
    table = read(tmp_path, "r.json", [{"text": "x", "label": label} for label in labels]).table
    other = ["positive", "negative", "neutral"]
    remapped = remap_labels(table, CLASSES, other)
    assert remapped.column("label").to_pylist() == [1, 0, -1, 2]
    assert remapped.schema == TABLE_SCHEMA
    assert remap_labels(remapped, other, CLASSES).equals(table)
    with pytest.raises(ValueError, match="neutral"):
        remap_labels(table, CLASSES, ["positive", "negative"])
