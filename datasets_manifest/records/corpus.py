"""All domains of a run in one table, so that a row number means the same row everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.schema import LoadedManifest, load_manifest
from datasets_manifest.records.readers import absent_columns, class_sets_agree, read_split, remap_labels
from datasets_manifest.records.target_labels import TargetLabels


@dataclass(frozen=True)
class Part:
    """One split of one domain: rows start … stop − 1 of the table."""

    domain: str
    split: str
    start: int
    stop: int

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.start, self.stop, dtype=np.int64)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Corpus:
    """Sources first, target last.

    Args:
        table: of readers.TABLE_SCHEMA, all parts one after another.
        classes: in the first source's order.
        train: one part a domain.
        val: one part a domain, None where a manifest has no such split.
        notes: what was corrected while reading, as sentences.
        given: labels of the target that training may use; None: none.
    """

    table: pa.Table
    classes: list[str]
    train: list[Part]
    val: list[Part | None]
    notes: list[str]
    given: TargetLabels | None = None

    @property
    def labels(self) -> np.ndarray:
        """int64 [rows]; -1 where unlabelled. The target's labels are for reports only."""
        return self.table["label"].to_numpy().astype(np.int64)

    @property
    def num_sources(self) -> int:
        return len(self.train) - 1

    @property
    def target(self) -> str:
        return self.train[-1].domain


def load_corpus(sources: Sequence[str], target: str, train_split: str = "train", val_split: str = "val") -> Corpus:
    """Read all manifests and their splits.

    Raises:
        InputError: also if domains share a name, their classes differ, or a source has labels of fewer than two.
    """
    manifests = [load_manifest(path) for path in [*sources, target]]
    _distinct_names(manifests)
    class_sets_agree(manifests)
    classes = list(manifests[0].classes)
    tables: list[pa.Table] = []
    notes: list[str] = []
    start = 0

    def read(manifest: LoadedManifest, split: str) -> Part:
        nonlocal start
        result = read_split(manifest, split)
        if result.repeated_ids:
            notes.append(f"{manifest.name}, {split}: {result.repeated_ids} repeated ids were numbered")
        if result.without_content:
            dropped = f"{result.without_content} records without content left out"
            notes.append(f"{manifest.name}, {split}: {dropped} ({', '.join(result.without_content_ids)})")
        notes.extend(
            f"{manifest.name}, {split}: {note}" for note in [*absent_columns(result), *result.notes, *result.left_alone]
        )
        tables.append(remap_labels(result.table, manifest.classes, classes))
        part = Part(manifest.name, split, start, start + result.table.num_rows)
        start = part.stop
        return part

    train = [read(manifest, train_split) for manifest in manifests]
    val = [read(manifest, val_split) if val_split in manifest.splits else None for manifest in manifests]
    corpus = Corpus(pa.concat_tables(tables).combine_chunks(), classes, train, val, notes)
    for manifest, part in zip(manifests[:-1], corpus.train[:-1], strict=True):
        _require_two_classes(manifest, train_split, corpus.labels[part.start : part.stop], classes)
    learned = np.unique(corpus.labels[: corpus.train[-1].start])
    notes.extend(f"no source has a record of class {name}" for c, name in enumerate(classes) if c not in learned)
    return corpus


def _distinct_names(manifests: Sequence[LoadedManifest]) -> None:
    seen: dict[str, LoadedManifest] = {}
    for manifest in manifests:
        if manifest.name in seen:
            problem = f"another domain has this name ({seen[manifest.name].path})"
            wanted = "a name of its own for every domain"
            raise InputError(problem, file=manifest.path, field="name", value=manifest.name, wanted=wanted)
        seen[manifest.name] = manifest


def _require_two_classes(manifest: LoadedManifest, split: str, labels: np.ndarray, classes: list[str]) -> None:
    found = np.unique(labels[labels >= 0])
    if len(found) < 2:
        problem, wanted = "a source must have labels of at least two classes", f"labels among {', '.join(classes)}"
        value = [classes[c] for c in found]
        raise InputError(problem, file=manifest.path, field=f"splits.{split}", value=value, wanted=wanted)
