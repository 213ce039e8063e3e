"""The manifest: what a data set is called, which classes it has, and where each split's records are.

A manifest is a YAML or JSON file written by the user. `load_manifest` turns it into typed objects or says, as an
InputError, which file, field and value are wrong.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from datasets_manifest.errors import InputError, from_validation_error, nearest

RecordFormat = Literal["auto", "json", "jsonl", "csv", "tsv", "parquet"]

# Guards against a records file given by mistake: YAML takes about five seconds a megabyte.
MAX_MANIFEST_BYTES = 2**20

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
NonEmpty = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    # Strict: YAML has types of its own, and `sample: "12"` or `classes: [yes, no]` (two booleans) is a slip to report.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Columns(_Section):
    """Which column (or JSON key) of a record holds what. A column named here must exist in every records file."""

    id: NonEmpty | None = None  # None: the column "id" if there is one
    text: NonEmpty = "text"
    image: NonEmpty = "image"
    label: NonEmpty = "label"


class Split(_Section):
    """One split: its records files and how to read them. Relative paths are relative to the manifest's folder."""

    records: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)]
    format: RecordFormat = "auto"
    columns: Columns = Columns()
    image_root: NonEmpty | None = None  # None: the manifest's folder
    sample: Annotated[int, Field(gt=0)] | None = None  # samples drawn per epoch; None: the trainer decides
    allow_absolute: bool = False  # records may name absolute image paths
    allow_outside_root: bool = False  # records may leave the image root by ".."

    @property
    def record_files(self) -> tuple[str, ...]:
        """The records files as written, always as a tuple."""
        return (self.records,) if isinstance(self.records, str) else tuple(self.records)


class Manifest(_Section):
    """A data set of one domain."""

    schema_version: Literal[1] = 1
    name: Name
    classes: Annotated[list[NonEmpty], Field(min_length=2)]
    splits: Annotated[dict[Name, Split], Field(min_length=1)]

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str]) -> list[str]:
        for name in classes:
            if name != name.strip():
                raise ValueError(f"the class name {name!r} begins or ends with white space")
        repeated = sorted({name for name in classes if classes.count(name) > 1})
        if repeated:
            raise ValueError(f"the class {repeated[0]!r} is named twice")
        return classes


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest and the absolute path of the file it came from, to which its relative paths refer."""

    manifest: Manifest
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> list[str]:
        return self.manifest.classes

    @property
    def splits(self) -> dict[str, Split]:
        return self.manifest.splits

    def split(self, name: str) -> Split:
        """The split called `name`. Raises InputError, naming the nearest split, if there is none."""
        if name not in self.splits:
            close = nearest(name, self.splits)
            hint = f" (nearest: {close})" if close is not None else ""
            wanted = f"one of {', '.join(self.splits)}{hint}"
            raise InputError("no such split", file=self.path, field="splits", value=name, wanted=wanted)
        return self.splits[name]

    def record_paths(self, split: str) -> tuple[Path, ...]:
        """The split's records files as absolute paths, in the order of the manifest."""
        return tuple(self._resolve(name) for name in self.split(split).record_files)

    def image_root(self, split: str) -> Path:
        """The absolute folder to which the split's image paths are relative."""
        return self._resolve(self.split(split).image_root or ".")

    def _resolve(self, written: str) -> Path:
        return self.folder / os.path.expanduser(written)


def load_manifest(path: str | Path) -> LoadedManifest:
    """Reads and checks a manifest (YAML, or JSON if the name ends in .json).

    Raises:
        InputError: the file is missing, a folder, not UTF-8, not YAML or JSON, or not a manifest; or a records file or
            an image root that it names does not exist.
    """
    file = Path(os.path.expanduser(path)).absolute()
    content = _parse(_read_text(file), file)
    if not isinstance(content, dict):
        raise InputError("not a manifest", file=file, value=content, wanted="a mapping with name, classes and splits")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise from_validation_error(error, Manifest, file) from None
    loaded = LoadedManifest(manifest, file)
    for split in manifest.splits:
        _check_files(loaded, split)
    return loaded


def _read_text(file: Path) -> str:
    if _exists(file, "folder"):
        raise InputError("the manifest is a folder", file=file, wanted="a YAML or JSON file")
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            wanted = f"at most {MAX_MANIFEST_BYTES // 2**20} MiB; is this a records file?"
            raise InputError("too large for a manifest", file=file, value=file.stat().st_size, wanted=wanted)
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", file=file, wanted="a YAML or JSON file in UTF-8") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_os_problem(error), file=file, wanted="a readable manifest file") from None


def _os_problem(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"cannot be read ({error.strerror if isinstance(error, OSError) else error})"


def _parse(text: str, file: Path) -> Any:
    try:
        if file.suffix.lower() == ".json":
            return json.loads(text)
        return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: builds plain values only
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark is not None else None
        raise InputError(f"not YAML: {error.problem}", file=file, field=line) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", file=file, field=f"line {error.lineno}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot be parsed: {problem}", file=file) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key written twice, of which YAML would silently keep the last: a lost split or class list."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is written twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _check_files(loaded: LoadedManifest, split: str) -> None:
    for number, (written, path) in enumerate(zip(loaded.split(split).record_files, loaded.record_paths(split))):
        listed = isinstance(loaded.split(split).records, list)
        field = f"splits.{split}.records" + (f".{number}" if listed else "")
        if "://" in written:
            raise InputError("not a local file", file=loaded.path, field=field, value=written, wanted="a local path")
        if not _exists(path, "file"):
            raise InputError("no such file", file=loaded.path, field=field, value=written, wanted=f"a file at {path}")
    root, written_root = loaded.image_root(split), loaded.split(split).image_root
    if written_root is not None and not _exists(root, "folder"):
        field = f"splits.{split}.image_root"
        raise InputError(
            "no such folder", file=loaded.path, field=field, value=written_root, wanted=f"a folder at {root}"
        )


def _exists(path: Path, kind: Literal["file", "folder"]) -> bool:
    try:
        return path.is_file() if kind == "file" else path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False
