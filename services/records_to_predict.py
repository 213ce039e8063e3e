"""What is to be predicted: the records of a manifest, or of a plain records file, which needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from datasets_manifest.checks.manifest_guess import guess_of
from datasets_manifest.errors import composed
from datasets_manifest.manifest.loading import LoadedManifest, load_manifest, manifest_of

_RECORDS = (".csv", ".tsv", ".jsonl", ".parquet")  # .json may be a manifest, too


def is_records_file(data: str | Path) -> bool:
    """By its name, with or without `.gz`."""
    return str(data).lower().removesuffix(".gz").endswith(_RECORDS) and "://" not in str(data)


def manifest_to_predict(data: str | Path, classes: list[str]) -> tuple[LoadedManifest, str | None]:
    """A manifest; of a records file one with a model's classes, whose columns are guessed as `m2can data init` does.

    Labels in such a file are not looked at.

    Returns:
        the manifest, and what was guessed, in words; None: nothing was.

    Raises:
        InputError: see load_manifest and guess_of.
    """
    if not is_records_file(data):
        return load_manifest(data), None
    guess = guess_of(Path(data).expanduser())
    content: dict[str, Any] = yaml.safe_load(guess.text)
    names = {*map(composed, classes)}
    found = [*content["classes"], *content.pop("labels", {})]
    content["labels"] = {label: None for label in found if composed(str(label)) not in names}
    content["classes"] = classes
    content.pop("split", None)  # nothing is trained: all its records are one split
    content["splits"] = {"train": content["splits"]["train"]}
    columns = content.get("defaults", {}).get("columns", {})
    guessed = ", ".join(f"{role} in `{column}`" for role, column in columns.items() if role != "label")
    return manifest_of(content, guess.manifest), f"{data}: {guessed}; a manifest says otherwise" if guessed else None
