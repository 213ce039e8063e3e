"""A split's records files → one Arrow table of (id, domain, texts, images, label).

Unusual input is either corrected in one documented way (a missing modality is an empty list, a repeated id gets a number,
a record without content is dropped and counted) or refused with an InputError that names file, record, field, value and
what was wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from datasets_manifest.errors import InputError, nearest
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.manifest.store_faults import with_store
from datasets_manifest.records.division import divide
from datasets_manifest.records.label_faults import LabelFaults
from datasets_manifest.records.record_files import FileFacts, column_names, format_of, is_table, read_records
from datasets_manifest.records.record_values import (
    TABLE_SEPARATOR,
    UNLABELLED,
    LabelReader,
    PathReader,
    ValueFault,
    read_id,
    read_texts,
    split_paths,
)

TABLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("images", pa.list_(pa.string())),
        ("label", pa.int32()),
    ]
)

ALL = "all"
_BATCH_ROWS, _BATCH_CHARACTERS = 65_536, 2**28  # Arrow's string columns address 2 GiB within one batch
_NAMED_IDS = 10
_MAX_CHUNK_BYTES = 2**31 - 1  # Arrow's string columns address no more than this within one chunk


@dataclass(frozen=True)
class ReadResult:
    """A split's table and what was corrected to make it.

    table: of TABLE_SCHEMA; `images` are absolute paths, not opened yet; label -1 is unlabelled.
    repeated_ids: records whose id had been used before, and which got "#2", "#3", … appended to it.
    without_content: records that were dropped because they have neither text nor image.
    without_content_ids: the first ten ids of these.
    absent: the columns of texts, pictures and labels that no file has, each with the nearest that one has.
    notes: what was assumed, as sentences.
    left_alone: files of a folder that are no record, as sentences.
    """

    table: pa.Table
    repeated_ids: int
    without_content: int
    without_content_ids: tuple[str, ...]
    absent: dict[str, str | None]
    label_column: str
    notes: tuple[str, ...]
    left_alone: tuple[str, ...] = ()


Write = Callable[[pa.RecordBatch], None]


def read_split(
    manifest: LoadedManifest,
    split: str,
    *,
    keep_empty: bool = False,
    label_faults: LabelFaults | None = None,
    write: Write | None = None,
) -> ReadResult:
    """Reads all records of a split, in the order of its files.

    Args:
        keep_empty: keep records without content, as rows with two empty lists; they are counted either way.
        label_faults: takes the labels that are no class; their records count as unlabelled then.
        write: takes the rows, some at a time; the result's table is empty then. Not of a split that the manifest divides.

    A record without an id gets `<split>-<n>`, where n counts all records of the split's files from 1.

    Raises:
        InputError: no such split, no record with content, or a file, record or value that cannot be used.
    """
    manifest.split(split)
    division = manifest.manifest.split
    if division is None:
        return _read_files(manifest, split, keep_empty, label_faults, write)
    (stored,) = manifest.manifest.splits
    rest = split == stored
    whole = _read_files(manifest, stored, keep_empty, LabelFaults() if label_faults and not rest else label_faults)
    divided_off = divide(whole.table, division)
    table = whole.table.filter(pa.array(divided_off != rest))
    if not table.num_rows:
        raise InputError(f"leaves no record for {split}", file=manifest.path, field="split.val", value=division.val)
    if rest:
        return replace(whole, table=table)
    return replace(
        whole, table=table, repeated_ids=0, without_content=0, without_content_ids=(), notes=(), left_alone=()
    )


def read_for_prediction(manifest: LoadedManifest, split: str) -> pa.Table:
    """The records of a split, or of all splits where `split` is ALL and no split has that name; those without content, too.

    A file that is divided into two splits keeps its order.

    Raises:
        InputError: see read_split.
    """
    if split != ALL or ALL in manifest.splits:
        return read_split(manifest, split, keep_empty=True).table
    return pa.concat_tables(_read_files(manifest, name, True, None).table for name in manifest.manifest.splits)


def _read_files(
    manifest: LoadedManifest,
    split: str,
    keep_empty: bool,
    label_faults: LabelFaults | None,
    write: Write | None = None,
) -> ReadResult:
    settings = manifest.split(split)
    labels = LabelReader(manifest.classes, manifest.manifest.labels)
    faults = LabelFaults() if label_faults is None else label_faults
    facts = FileFacts()
    paths = PathReader(
        manifest.image_root(split),
        template=settings.image_template,
        allow_absolute=settings.allow_absolute,
        allow_outside_root=settings.allow_outside_root,
    )

    rows = _TableBuilder(manifest.name, keep_empty, write)
    number = 0
    for file in manifest.record_paths(split):
        form = format_of(file) if settings.format == "auto" else settings.format
        separator = settings.image_separator or (TABLE_SEPARATOR if is_table(form) else None)
        for record in read_records(file, settings, facts):
            number += 1
            try:
                identity = read_id(record.id) or f"{split}-{number}"
                texts = read_texts(record.text)
                images = paths.read(split_paths(record.image, separator))
            except ValueFault as fault:
                raise fault.located(file, record) from None
            except OSError as error:
                problem = f"the pictures' store cannot be reached ({with_store(file, error)})"
                raise InputError(problem, file=file) from None
            try:
                label = labels.read(record.label)
            except ValueFault as fault:
                faults.add(fault, file, record)
                label = UNLABELLED
            rows.add(identity, texts, images, label)
    table = rows.table()
    if rows.without_content == number:
        found = f"{number} records, none with a text or an image" if number else "no record"
        raise InputError(f"the split is empty: {found}", file=manifest.path, field=f"splits.{split}")
    if label_faults is None:
        faults.raise_first()
    _, *columns = column_names(settings.columns)
    absent = {name: nearest(name, facts.columns) for name in columns if name not in facts.columns}
    return ReadResult(
        table,
        rows.ids.repeated,
        rows.without_content,
        tuple(rows.without_content_ids),
        absent=absent,
        label_column=columns[-1],
        notes=tuple(facts.notes),
        left_alone=tuple(facts.left_alone),
    )


def absent_columns(result: ReadResult) -> list[str]:
    """A sentence for each column of texts, pictures or labels that no file of the split has.

    A target has no labels: their absence is told only if a column has nearly that name.
    """
    return [
        f"no file has a column `{name}`" + ("" if close is None else f"; nearest: `{close}`")
        for name, close in result.absent.items()
        if close is not None or name != result.label_column
    ]


class _UniqueIds:
    """Makes ids unique: one that was used before gets a number appended.

    Which were used is known by their hashes of 64 bits, 8 bytes each. Two of 10⁸ different ids have the same one with a
    probability of 1 in 3,700; the later one then gets a number that it does not need.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._used: list[np.ndarray] = []  # sorted hashes, each array at least twice as long as the next
        self._numbers: dict[int, int] = {}  # of ids that were repeated, by hash: the last one appended

    def claim(self, ids: list[str]) -> list[str]:
        """The ids, in their order, as they are used from now on."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        used, different = self._is_used(hashes), np.unique(hashes)
        if not used.any() and len(different) == len(ids):
            self._add(different)
            return ids
        claimed: list[str] = []
        new: set[int] = set()
        for identity, number, before in zip(ids, hashes.tolist(), used.tolist(), strict=True):
            if before or number in new:
                identity = self._numbered(identity, new)
            claimed.append(identity)
            new.add(hash(identity))
        self._add(np.sort(np.fromiter(new, np.int64, len(new))))
        return claimed

    def _numbered(self, identity: str, new: set[int]) -> str:
        self.repeated += 1
        count = self._numbers.get(hash(identity), 1) + 1
        while (found := hash(f"{identity}#{count}")) in new or self._is_used(np.array([found])).any():
            count += 1  # the user may have such an id, too
        self._numbers[hash(identity)] = count
        return f"{identity}#{count}"

    def _is_used(self, hashes: np.ndarray) -> np.ndarray:
        found = np.zeros(len(hashes), bool)
        for used in self._used:
            found |= used[np.searchsorted(used, hashes).clip(max=len(used) - 1)] == hashes
        return found

    def _add(self, hashes: np.ndarray) -> None:
        if len(hashes):
            self._used.append(hashes)
        while len(self._used) > 1 and len(self._used[-2]) < 2 * len(self._used[-1]):
            joined = np.concatenate([self._used.pop(), self._used.pop()])
            joined.sort(kind="stable")  # of two sorted halves: a merge
            self._used.append(joined)


class _TableBuilder:
    """Records of a domain → rows, in batches, so that only a batch of them exists as Python objects.

    without_content, without_content_ids: records that have neither text nor picture, and the first ids of these.
    """

    def __init__(self, domain: str, keep_empty: bool, write: Write | None) -> None:
        self.ids = _UniqueIds()
        self.without_content = 0
        self.without_content_ids: list[str] = []
        self._domain, self._keep_empty = domain, keep_empty
        self._rows: list[tuple[str, list[str], list[str], int]] = []
        self._characters = 0
        self._batches: list[pa.RecordBatch] = []
        self._write = write or self._batches.append

    def add(self, identity: str, texts: list[str], images: list[str], label: int) -> None:
        """The values of TABLE_SCHEMA's columns."""
        self._rows.append((identity, texts, images, label))
        self._characters += sum(map(len, texts)) + sum(map(len, images))
        if len(self._rows) == _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._finish_batch()

    def table(self) -> pa.Table:
        """The table of all rows that were not written; in one chunk, where look-ups are much faster, if Arrow can address
        it so."""
        self._finish_batch()
        table = pa.Table.from_batches(self._batches, schema=TABLE_SCHEMA)
        return table.combine_chunks() if table.nbytes <= _MAX_CHUNK_BYTES else table

    def _finish_batch(self) -> None:
        ids = self.ids.claim([row[0] for row in self._rows])
        rows = []
        for identity, (_, texts, images, label) in zip(ids, self._rows, strict=True):
            if not texts and not images:
                self.without_content += 1
                if len(self.without_content_ids) < _NAMED_IDS:
                    self.without_content_ids.append(identity)
                if not self._keep_empty:
                    continue
            rows.append((identity, self._domain, texts, images, label))
        columns = zip(*rows, strict=True) if rows else [[]] * len(TABLE_SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, TABLE_SCHEMA, strict=True)]
        self._write(pa.RecordBatch.from_arrays(arrays, schema=TABLE_SCHEMA))
        self._rows, self._characters = [], 0
