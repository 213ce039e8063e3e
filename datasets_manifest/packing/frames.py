"""Frames → a data set on disk that a recipe names: a manifest, a Parquet file a split, pictures in shards as `pack` writes them.

<folder>/
    manifest.yaml
    <split>.parquet                  id, text, image, label, as far as the frame has them
    shards/<split>-<n>.shard         pictures that were given as bytes or PIL images; those given as paths stay where they are
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from datasets_manifest.errors import InputError, from_validation_error
from datasets_manifest.files import whole_folder
from datasets_manifest.manifest.keys import DIVIDED_OFF, Manifest
from datasets_manifest.manifest.storage import is_uri
from datasets_manifest.records import frames
from datasets_manifest.records import packed_pictures as packed
from datasets_manifest.records.record_values import LabelReader, ValueFault

VAL_FRACTION = 0.15  # of the records of a domain that is given as one frame
_ROWS_A_SHARD = 2_000
_OTHER_NAMES = {"validation": DIVIDED_OFF, "dev": DIVIDED_OFF}  # as `datasets` calls it
_KINDS = {frames.TEXT: pa.list_(pa.string()), frames.IMAGE: pa.list_(pa.string()), frames.LABEL: pa.string()}


def splits_of(name: str, data: Any) -> dict[str, Any]:
    """The frames of a domain by split: one frame is `train`; of a mapping, such as a `datasets.DatasetDict`, `validation` is
    `val`.

    Raises:
        InputError: neither a frame nor a mapping of frames.
    """
    given = data if isinstance(data, Mapping) else {"train": data}
    for split, frame in given.items():
        if not frames.is_frame(frame):
            wanted = "a pandas DataFrame, a datasets.Dataset, or a mapping of splits to these"
            raise InputError("is not a frame", field=f"{name}, {split}", value=type(frame).__name__, wanted=wanted)
    return {
        split if split in ("train", DIVIDED_OFF) else _OTHER_NAMES.get(split, split): given[split] for split in given
    }


def classes_of(domains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The classes of frames: the names that a `datasets.Dataset` has for its labels, or else all labels, sorted."""
    found: set[str] = set()
    for splits in domains.values():
        for frame in splits.values():
            names = frames.class_names(frame)
            if names is not None:
                return names
            for part in frames.slices(frame, _ROWS_A_SHARD):
                if frames.LABEL in part.columns:
                    found |= {label for cell in part[frames.LABEL] if (label := frames.label_of(cell)) is not None}
    return sorted(found)


def write_domain(name: str, splits: Mapping[str, Any], classes: list[str], folder: Path) -> Path:
    """Write a domain's frames to the new folder, whole or not at all; the manifest.

    A domain with one frame is divided: a fixed part of its records, the same in every call, becomes `val`.

    Raises:
        InputError: the name cannot be a domain's, a frame has neither texts nor pictures, or a cell cannot be used.
    """
    content: dict[str, Any] = {"schema_version": 1, "name": name, "classes": classes}
    content["defaults"] = {"allow_absolute": True, "allow_outside_root": True}
    content["splits"] = {split: {"records": f"{split}.parquet"} for split in splits}
    if len(splits) == 1 and DIVIDED_OFF not in splits:
        content["split"] = {"val": VAL_FRACTION}
    try:
        Manifest.model_validate(content)
    except ValidationError as error:
        raise from_validation_error(error, Manifest, f"frames of {name}") from None
    with whole_folder(folder) as draft:
        for split, frame in splits.items():
            _write_split(frame, f"{name}, {split}", classes, draft, split)
        (draft / "manifest.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder / "manifest.yaml"


def _write_split(frame: Any, where: str, classes: list[str], folder: Path, split: str) -> None:
    names, reader = frames.class_names(frame), LabelReader(classes)
    (folder / "shards").mkdir(exist_ok=True)
    parts = []
    for number, part in enumerate(frames.slices(frame, _ROWS_A_SHARD)):
        frames.require_content(part, where)
        first = number * _ROWS_A_SHARD
        shard = _Shard(folder, f"shards/{split}-{number:05d}.shard")
        columns: dict[str, list[Any]] = {}
        for column in (frames.TEXT, frames.IMAGE, frames.LABEL):
            cells = list(enumerate(frames.column(part, column, where), start=first + 1))
            if column not in part.columns:
                continue
            if column == frames.TEXT:
                columns[column] = [frames.texts_of(cell, f"{where}, row {row}, text") for row, cell in cells]
            elif column == frames.IMAGE:
                columns[column] = [
                    [shard.place(picture) for picture in frames.pictures_of(cell, f"{where}, row {row}, image")]
                    for row, cell in cells
                ]
            else:
                columns[column] = [
                    _label(frames.label_of(cell, names), reader, f"{where}, row {row}") for row, cell in cells
                ]
        if frames.ID in part.columns:
            columns[frames.ID] = [None if cell is None else str(cell) for cell in part[frames.ID]]
        shard.close()
        parts.append(pa.table({key: pa.array(cells, _KINDS.get(key, pa.string())) for key, cells in columns.items()}))
    if not parts:
        raise InputError("has no row", field=where, wanted="a frame with rows")
    pq.write_table(pa.concat_tables(parts), folder / f"{split}.parquet")


def _label(label: str | None, reader: LabelReader, where: str) -> str | None:
    try:
        reader.read(label)
    except ValueFault as fault:
        raise InputError(fault.problem, field=f"{where}, label", value=fault.value, wanted=fault.wanted) from None
    return label


class _Shard:
    """Pictures' bytes one after another in a file, which the first one makes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._name = folder / name, name
        self._stream: Any = None

    def place(self, picture: str | bytes) -> str:
        """Where a record finds the picture: a reference into the shard, or its path, made absolute."""
        if isinstance(picture, str):
            return picture if is_uri(picture) else os.path.abspath(os.path.expanduser(picture))
        if self._stream is None:
            self._stream = self._file.open("wb")
        reference = packed.reference(self._name, self._stream.tell(), picture)
        self._stream.write(picture)
        return reference

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
