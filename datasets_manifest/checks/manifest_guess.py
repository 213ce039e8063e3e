"""A manifest for a records file, guessed by looking at it. What was guessed, and why, stands in the comments."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datasets_manifest.checks.column_guess import (
    MOST_CLASSES,
    Records,
    guess_columns,
    is_picture,
    pictures_of,
    values,
)
from datasets_manifest.errors import InputError
from datasets_manifest.records.picture_formats import PICTURES
from datasets_manifest.records.record_files import read_plain
from datasets_manifest.records.record_values import TABLE_SEPARATOR

_NO_LABEL = {"n/a", "na", "nan", "none", "null", "-", "?", "unknown", "unlabelled", "unlabeled"}
_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation", "dev")
_LEAST_DIVIDED = 20  # records; fewer are not divided
_TRIED_FOLDERS, _TRIED_PICTURES = 200, 50


@dataclass(frozen=True)
class GuessedManifest:
    """manifest: the file that `text` is meant for; not written yet."""

    manifest: Path
    text: str


def guess_manifest(file: Path) -> GuessedManifest:
    """Look at all records of a file.

    Raises:
        InputError: the file cannot be read, holds no record, or its manifest exists already.
    """
    if (manifest := _place(file.absolute())).exists():
        raise InputError("exists already and is not overwritten", file=manifest, wanted="another name, or remove it")
    return guess_of(file)


def guess_of(file: Path) -> GuessedManifest:
    """As guess_manifest, for a manifest that is not to be written. Raises InputError: cannot be read, or holds no record."""
    file = file.absolute()
    manifest, stem = _place(file), _stem(file)
    is_train = stem.lower() in _TRAIN
    records, separator, notes = read_plain(file)
    if not records:
        raise InputError("no record", file=file)
    columns = guess_columns(records)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", file.parent.name if is_train else stem).strip("-_")[:64] or "data"
    unused = [
        each for each in dict.fromkeys(key for record in records for key in record) if each not in columns.values()
    ]
    lines = [
        _comment(f"guessed from {file.name}: {len(records):,} records"),
        _comment(f"look through it, then: m2can data check {manifest.name}"),
        "schema_version: 1",
        _line("name", name),
        *_labels(records, columns.get("label")),
    ]
    reading = []
    if separator not in (None, ",") and file.name.lower().removesuffix(".gz").endswith(".csv"):
        reading.append(_line("separator", separator))
    reading += [_line("encoding", "cp1252", notes[0])] if notes else []
    mapped = {role: columns[role] for role in ("id", "text", "image", "label") if columns.get(role, role) != role}
    if mapped:
        reading.append(_line("columns", mapped, f"not used: {', '.join(unused)}" if unused else ""))
    if "image" in columns:
        reading += _pictures(records, columns["image"], file.parent, separator is not None)
    comments_only = all(line.startswith("#") for line in reading)  # `defaults` without a key would be null
    lines += reading if comments_only else ["defaults:", *(f"  {line}" for line in reading)]
    val = next((v for v in _VAL if is_train and file.with_name(file.name.replace(stem, v, 1)).is_file()), None)
    lines += ["splits:", f"  {_line('train', {'records': file.name})}"]
    if val is not None:
        lines.append(f"  {_line('val', {'records': file.name.replace(stem, val, 1)})}")
    elif len(records) >= _LEAST_DIVIDED:
        lines.append(_line("split", {"val": 0.15, "seed": 1, "stratify": True}, "there is one file"))
    return GuessedManifest(manifest, "\n".join(lines) + "\n")


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0] or file.name


def _place(file: Path) -> Path:
    """Where the manifest of a records file belongs."""
    stem = _stem(file)
    return file.with_name("manifest.yaml" if stem.lower() in _TRAIN else f"{stem}.yaml")


def _labels(records: Records, column: str | None) -> list[str]:
    """The lines `classes` and `labels`."""
    if column is None:
        return [_line("classes", [], "no column of labels was found: the classes of your sources belong here")]
    counts = Counter(_written(value) for value in values(records, column))
    if len(counts) > MOST_CLASSES:
        return [_line("classes", [], f"`{column}` has {len(counts):,} different values: the classes belong here")]
    spellings: dict[str, list[str]] = defaultdict(list)
    for label, _ in counts.most_common():
        spellings[unicodedata.normalize("NFC", label).casefold()].append(label)
    for written in spellings.values():  # the most frequent first, among equals the one in small letters
        written.sort(key=lambda label: (-counts[label], label != label.casefold()))
    unlabelled = [each for key, written in spellings.items() if key in _NO_LABEL for each in written]
    classes = [written[0] for key, written in sorted(spellings.items()) if key not in _NO_LABEL]
    labels: dict[str, str | None] = dict.fromkeys(unlabelled)
    for key, (first, *others) in spellings.items():
        labels |= dict.fromkeys(others, first) if key not in _NO_LABEL else {}
    found = ", ".join(f"{label} {count:,}" for label, count in counts.most_common())
    empty = len(records) - counts.total()
    lines = [_comment(f"in `{column}`: {found}" + (f", empty {empty:,}" if empty else "")), _line("classes", classes)]
    return lines + ([_line("labels", labels, "other spellings; null is unlabelled")] if labels else [])


def _written(label: Any) -> str:
    """As a label reader sees it: 5.0, as pandas writes integers beside empty cells, is 5."""
    text = str(label).strip()
    return text.removesuffix(".0") if re.fullmatch(r"\d+\.0", text) else text


def _pictures(records: Records, column: str, folder: Path, is_table: bool) -> list[str]:
    """The lines `image_separator`, `image_root`, `image_template` and `allow_absolute`."""
    separators = (TABLE_SEPARATOR, ";", ",", " ") if is_table else (TABLE_SEPARATOR,)
    split = {each: pictures_of(records, column, each) for each in separators}
    whole = [each for each in separators if all(map(is_picture, split[each]))] or [TABLE_SEPARATOR]
    separator = max(whole, key=lambda each: len(split[each]))
    paths = split[separator][:_TRIED_PICTURES]
    lines = [_line("image_separator", separator)] if separator != TABLE_SEPARATOR else []
    if not paths:
        return lines
    if any("://" in path for path in paths):
        lines.append(_comment("pictures at http addresses are not read: load them down first"))
        return lines
    if all(path.startswith("/") for path in paths):
        return [*lines, _line("allow_absolute", True, f"{_count(paths)} that were tried are there")]
    root, ending, found = _root(paths, folder)
    if not found:
        tried = _comment(f"image_root: no picture was found below {folder.name}, e.g. {paths[0]}")
        return [*lines, tried]
    there = f"{found} of {_count(paths)} that were tried are there"
    if root != ".":
        lines.append(_line("image_root", root, there))
    if ending:
        lines.append(_line("image_template", f"{{entry}}{ending}", there))
    return lines


def _root(paths: list[str], folder: Path) -> tuple[str, str, int]:
    """The folder (relative to `folder`), the ending to add, and how many of the paths are files then."""
    endings = [""] if any(map(is_picture, paths)) else ["", *PICTURES]
    tried = [
        (sum((root / f"{path}{ending}").is_file() for path in paths), root, ending)
        for root in _folders(folder)
        for ending in endings
    ]
    found, root, ending = max(tried, key=lambda each: each[0])
    return os.path.relpath(root, folder), ending, found


def _folders(folder: Path) -> list[Path]:
    """The folder, those up to two levels below it, its parent and the folders beside it."""
    patterns = [(folder, "*/"), (folder, "*/*/"), (folder.parent, "*/")]
    below = [path for start, pattern in patterns for path in sorted(start.glob(pattern)) if path.name[:1] != "."]
    return [folder, *below[:_TRIED_FOLDERS], folder.parent]


def _count(paths: list[str]) -> str:
    return f"{len(paths)} picture{'s' if len(paths) != 1 else ''}"


def _line(key: str, value: Any, comment: str = "") -> str:
    written = yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
    return written.strip()[1:-1] + (f"  {_comment(comment)}" if comment else "")


def _comment(text: str) -> str:
    """One line that YAML takes, whatever the file's names and labels are."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return f"# {' '.join(plain.split())[:400]}"
