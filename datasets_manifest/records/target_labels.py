"""A few labels of the target: from a CSV, or those of its manifest. One part is trained on, the other checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets_manifest.errors import InputError, composed, nearest
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.record_values import UNLABELLED, LabelReader, ValueFault
from datasets_manifest.records.tables import find_separator, read_rows
from datasets_manifest.records.text_files import read_text

COLUMNS = ("id", "purpose", "label")  # of the CSV; others are not read
TRAIN, CHECK = "train", "check"  # purposes


@dataclass(frozen=True)
class TargetLabels:
    """Labels of rows of the target's training part, [n] and [m], both ascending by row.

    rows, labels: trained on. check_rows, check_labels: held out, to measure the accuracy.
    """

    rows: np.ndarray
    labels: np.ndarray
    check_rows: np.ndarray
    check_labels: np.ndarray


def read_target_labels(file: Location, ids: Sequence[str], start: int, classes: Sequence[str]) -> TargetLabels:
    """The labels of a CSV with the columns `id`, `label` and, if records are not to be held out by chance, `purpose`.

    Rows with an empty label are left out.

    Args:
        ids: of the target's training records, in their order.
        start: row number of the first of them.

    Raises:
        InputError: a column, a record or a class that is not there, two labels of one record, or no label at all.
    """
    text, _ = read_text(file, None, guess=True)
    rows = read_rows(file, text, find_separator(file, text, set(COLUMNS)))
    _, header = next(rows, ("", []))
    for name in ("id", "label"):
        if name not in header:
            wanted = "a table with the columns `id` and `label`, as `m2can data suggest` writes it"
            raise InputError("is no table of labels", file=file, field="line 1", value=header, wanted=wanted)
    places = {identity: start + place for place, identity in enumerate(ids)}
    reader, labels, purposes = LabelReader(classes), dict[int, int](), dict[int, str]()
    for position, cells in rows:
        record = dict(zip(header, cells, strict=True))
        try:
            label = reader.read(record["label"])
        except ValueFault as fault:
            raise InputError(
                fault.problem, file=file, field=f"{position}, label", value=fault.value, wanted=fault.wanted
            ) from None
        if label == UNLABELLED:
            continue
        row = places.get(composed(record["id"]), places.get(record["id"]))
        if row is None:
            close = nearest(record["id"], ids)
            wanted = "the id of a training record of the target" + (f" (nearest: {close})" if close else "")
            raise InputError("no such record", file=file, field=f"{position}, id", value=record["id"], wanted=wanted)
        if labels.setdefault(row, label) != label:
            problem = f"another label than before, {classes[labels[row]]}"
            raise InputError(
                problem, file=file, field=f"{position}, label", value=record["label"], wanted="one label a record"
            )
        if "purpose" in header:
            purposes[row] = _purpose(file, position, record["purpose"])
    if not labels:
        raise InputError("holds no label", file=file, wanted="a class in the column `label` of some rows")
    return _divided(labels, purposes, dict(zip(places.values(), places, strict=True)))


def own_target_labels(labels_N: np.ndarray, ids: Sequence[str], start: int) -> TargetLabels:
    """The labels that the target's manifest gives its training records.

    Args:
        labels_N: -1 where there is none.

    Raises:
        InputError: there is none.
    """
    known = np.flatnonzero(labels_N >= 0).tolist()
    if not len(known):
        wanted = "labels in the target's manifest, or the path of a CSV with columns `id` and `label`"
        raise InputError(
            "no training record of the target has a label", field="train.target_labels", value="few", wanted=wanted
        )
    return _divided({start + n: int(labels_N[n]) for n in known}, {}, {start + n: ids[n] for n in known})


def _purpose(file: Location, position: str, value: str) -> str:
    purpose = value.strip().casefold() or TRAIN
    if purpose not in (TRAIN, CHECK):
        wanted = f"`{TRAIN}` or `{CHECK}`"
        raise InputError("no such purpose", file=file, field=f"{position}, purpose", value=value, wanted=wanted)
    return purpose


def _divided(labels: Mapping[int, int], purposes: Mapping[int, str], ids: Mapping[int, str]) -> TargetLabels:
    """Where no purpose is stated, every second record of a class is held out, in an order that its id alone decides."""
    held = {row for row, purpose in purposes.items() if purpose == CHECK}
    if not purposes:
        for label in set(labels.values()):
            of_class = [row for row, found in labels.items() if found == label]
            of_class.sort(key=lambda row: hashlib.sha256(ids[row].encode()).digest())
            held |= set(of_class[1::2])
    parts = []
    for rows in (sorted(labels.keys() - held), sorted(held)):
        parts += [np.array(rows, np.int64), np.array([labels[row] for row in rows], np.int64)]
    return TargetLabels(*parts)
