"""All domains of a run in one table, so that a row number means the same row everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError
from datasets_manifest.manifest.loading import LoadedManifest, load_manifest
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.class_sets import remap_labels, require_same_classes
from datasets_manifest.records.large_corpus import Split, is_large, read_shards, shards_of, written
from datasets_manifest.records.readers import ReadResult, absent_columns, read_split
from datasets_manifest.records.sharded_table import ShardedTable, ShardWriter, labels_of
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
        table: of readers.TABLE_SCHEMA, all parts one after another; a ShardedTable where they are too many for memory.
        classes: in the first source's order.
        train: one part a domain.
        val: one part a domain, None where a manifest has no such split.
        notes: what was corrected while reading, as sentences.
        given: labels of the target that training may use; None: none.
    """

    table: pa.Table | ShardedTable
    classes: list[str]
    train: list[Part]
    val: list[Part | None]
    notes: list[str]
    given: TargetLabels | None = None

    @property
    def labels(self) -> np.ndarray:
        """int64 [rows], of a sharded table int16; -1 where unlabelled. The target's labels are for reports only."""
        return labels_of(self.table)

    @property
    def num_sources(self) -> int:
        return len(self.train) - 1

    @property
    def target(self) -> str:
        return self.train[-1].domain


def load_corpus(
    sources: Sequence[str],
    target: str,
    train_split: str = "train",
    val_split: str = "val",
    runs: Location | None = None,
) -> Corpus:
    """Read all manifests and their splits.

    Args:
        runs: the folder of runs. Rows that are too many for a table on each node (large_corpus.is_large) are written there as
            shards, and found there by the next command that reads the same files. None: they are one table, whatever its size.

    Raises:
        InputError: also if domains share a name, their classes differ, or a source has labels of fewer than two.
    """
    manifests = [load_manifest(path) for path in [*sources, target]]
    _distinct_names(manifests)
    require_same_classes(manifests)
    validated = [manifest if val_split in manifest.splits else None for manifest in manifests]
    splits = [(manifest, train_split) for manifest in manifests]
    splits += [(manifest, val_split) for manifest in validated if manifest is not None]
    for manifest, split in splits:
        manifest.split(split)
    if runs is not None and is_large(splits):
        table, parts, notes = _read_into_shards(splits, runs)
    else:
        table, parts, notes = _read_into_memory(splits)
    classes, train, others = list(manifests[0].classes), parts[: len(manifests)], iter(parts[len(manifests) :])
    val = [next(others) if manifest is not None else None for manifest in validated]
    corpus = Corpus(table, classes, train, val, notes)
    labels = corpus.labels
    for manifest, part in zip(manifests[:-1], train[:-1], strict=True):
        _require_two_classes(manifest, train_split, labels[part.start : part.stop], classes)
    learned = np.unique(labels[: train[-1].start])
    notes.extend(f"no source has a record of class {name}" for c, name in enumerate(classes) if c not in learned)
    return corpus


def _read_into_memory(splits: Sequence[Split]) -> tuple[pa.Table, list[Part], list[str]]:
    """The table of all splits, its parts, and what was corrected."""
    tables: list[pa.Table] = []
    notes: list[str] = []
    parts: list[Part] = []
    for manifest, split in splits:
        result = read_split(manifest, split)
        tables.append(remap_labels(result.table, manifest.classes, splits[0][0].classes))
        notes += _notes(manifest, split, result)
        start = parts[-1].stop if parts else 0
        parts.append(Part(manifest.name, split, start, start + result.table.num_rows))
    return pa.concat_tables(tables).combine_chunks(), parts, notes


def _read_into_shards(splits: Sequence[Split], runs: Location) -> tuple[ShardedTable, list[Part], list[str]]:
    """The same; the rows are read only if they do not lie there already."""
    folder = shards_of(splits, runs)
    found = read_shards(folder)
    if found is None:
        with written(folder) as shards:
            notes: list[str] = []
            parts: list[Part] = []
            for manifest, split in splits:
                start = shards.writer.num_rows
                write = partial(_write, shards.writer, manifest.classes, splits[0][0].classes)
                notes += _notes(manifest, split, read_split(manifest, split, write=write))
                parts.append(Part(manifest.name, split, start, shards.writer.num_rows))
            shards.finish({"parts": [asdict(part) for part in parts], "notes": notes})
        found = read_shards(folder)
    if found is None:
        raise InputError("the rows of the data were removed meanwhile", field="run.storage", value=str(folder))
    table, about = found
    return table, [Part(**part) for part in about["parts"]], about["notes"]


def _write(writer: ShardWriter, classes: Sequence[str], wanted: Sequence[str], batch: pa.RecordBatch) -> None:
    for remapped in remap_labels(pa.Table.from_batches([batch]), classes, wanted).to_batches():
        writer.write(remapped)


def _notes(manifest: LoadedManifest, split: str, result: ReadResult) -> list[str]:
    """What was corrected in a split, as sentences."""
    notes = []
    if result.repeated_ids:
        notes.append(f"{result.repeated_ids} repeated ids were numbered")
    if result.without_content:
        dropped = f"{result.without_content} records without content left out"
        notes.append(f"{dropped} ({', '.join(result.without_content_ids)})")
    notes += [*absent_columns(result), *result.notes, *result.left_alone]
    return [f"{manifest.name}, {split}: {note}" for note in notes]


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
