"""Loading a manifest: name, classes and splits of a data set.

A manifest is a YAML or JSON file written by the user. `load_manifest` turns it into typed objects or says, as an
InputError, which file, field and value are wrong.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from datasets_manifest.errors import InputError, first_line, from_validation_error, nearest, without_repeated_keys
from datasets_manifest.manifest import catalog, storage
from datasets_manifest.manifest.file_names import as_stored
from datasets_manifest.manifest.keys import DIVIDED_OFF, NOT_OF_FOLDERS, Manifest, Split
from datasets_manifest.manifest.misplaced_keys import refuse_misplaced_keys
from datasets_manifest.manifest.storage import Location
from datasets_manifest.manifest.store_faults import with_store

# Guards against a records file given by mistake: YAML takes about five seconds a megabyte.
MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True)
class LoadedManifest:
    """A manifest and the absolute path (or URI) of the file it came from, to which its relative paths refer."""

    manifest: Manifest
    path: Location

    @property
    def folder(self) -> Location:
        # A catalog's manifest is not a file; all its paths are absolute.
        return Path.cwd() if catalog.is_reference(str(self.path)) else storage.parent(self.path)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> list[str]:
        return self.manifest.classes

    @cached_property
    def splits(self) -> dict[str, Split]:
        """By name, with the manifest's defaults in them; `val`, if `split` divides it off, last."""
        return self.manifest.complete_splits()

    def split(self, name: str) -> Split:
        """The split called `name`. Raises InputError, naming the nearest split, if there is none."""
        if name not in self.splits:
            close = nearest(name, self.splits)
            hint = f" (nearest: {close})" if close is not None else ""
            wanted = f"one of {', '.join(self.splits)}{hint}"
            raise InputError("no such split", file=self.path, field="splits", value=name, wanted=wanted)
        return self.splits[name]

    def record_paths(self, split: str) -> tuple[Location, ...]:
        """The split's records files as absolute paths or URIs, in the order of the manifest."""
        return tuple(storage.locate(self.folder, name) for name in self.split(split).record_files)

    def image_root(self, split: str) -> Location:
        """The absolute folder or URI to which the split's image paths are relative."""
        settings = self.split(split)
        if settings.format == "folders":
            return self.record_paths(split)[0]
        return storage.locate(self.folder, settings.image_root or ".")


def load_manifest(path: str | Path) -> LoadedManifest:
    """Reads and checks a manifest (YAML, or JSON if the name ends in .json).

    Args:
        path: of a local file, a URI, or `catalog:NAME` (see datasets_manifest.manifest.catalog).

    Raises:
        InputError: the file is missing, a folder, not UTF-8, not YAML or JSON, or not a manifest; or a records file or
            an image root that it names does not exist.
    """
    file = _location(str(path))
    _require_text(file)
    content: Any = None
    if catalog.is_reference(str(file)):
        found = catalog.resolve(str(file))
        if isinstance(found, dict):
            content = found
        else:
            file = found
    if content is None:
        content = _parse(_read_text(file), file)
    return manifest_of(content, file)


def manifest_of(content: Any, file: Location) -> LoadedManifest:
    """Checks the content of a manifest that lies at `file`, or would. Raises InputError, see load_manifest."""
    if not isinstance(content, dict):
        raise InputError("not a manifest", file=file, value=content, wanted="a mapping with name, classes and splits")
    refuse_misplaced_keys(content, file)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise from_validation_error(error, Manifest, file) from None
    if manifest.split is not None and (len(manifest.splits) != 1 or DIVIDED_OFF in manifest.splits):
        wanted = f"one split, called `train`: {DIVIDED_OFF} is made of its records"
        raise InputError(
            "does not go with these splits", file=file, field="split", value=list(manifest.splits), wanted=wanted
        )
    loaded = LoadedManifest(manifest, file)
    for split in manifest.splits:
        _check_files(loaded, split)
    return loaded


def _location(written: str) -> Location:
    if catalog.is_reference(written) or storage.is_uri(written):
        return written
    return Path(as_stored(str(Path(os.path.expanduser(written)).absolute())))


def _require_text(file: Location) -> None:
    """Tables and reports hold paths as text. Raises InputError: bytes that are none."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        problem = "the path has bytes that are not UTF-8"
        raise InputError(problem, file=ascii(str(file)), wanted="a folder and a file of another name") from None


def _read_text(file: Location) -> str:
    try:
        if storage.is_folder(file):
            raise InputError("the manifest is a folder", file=file, wanted="a YAML or JSON file")
        if storage.size(file) > MAX_MANIFEST_BYTES:
            wanted = f"at most {MAX_MANIFEST_BYTES // 2**20} MiB; is this a records file?"
            raise InputError("too large for a manifest", file=file, value=storage.size(file), wanted=wanted)
        return storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", file=file, wanted="a YAML or JSON file in UTF-8") from None
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file", file=file, wanted="a readable manifest file") from None
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({with_store(file, error)})"
        raise InputError(problem, file=file, wanted="a readable manifest file") from None


def _parse(text: str, file: Location) -> Any:
    try:
        if storage.suffix(file) == ".json":
            return json.loads(text, object_pairs_hook=without_repeated_keys)
        return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: builds plain values only
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark is not None else None
        raise InputError(f"not YAML: {error.problem}", file=file, field=line) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", file=file, field=f"line {error.lineno}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = first_line(error)
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
    """Every file and folder that the split names exists."""
    settings, prefix = loaded.split(split), f"splits.{split}"
    kind = "file"
    if settings.format == "folders":
        _check_folders(loaded, split)
        kind = "folder"
    numbered = isinstance(settings.records, list)
    named = [
        (f"{prefix}.records.{number}" if numbered else f"{prefix}.records", written, kind)
        for number, written in enumerate(settings.record_files)
    ]
    if settings.image_root is not None:
        own = "image_root" in loaded.manifest.splits[split].model_fields_set
        named.append((f"{prefix if own else 'defaults'}.image_root", settings.image_root, "folder"))
    for field, written, kind in named:
        try:
            location = storage.locate(loaded.folder, written)
            found = storage.is_folder(location) if kind == "folder" else storage.is_file(location)
        except InputError as error:
            raise InputError(error.problem, file=loaded.path, field=field, value=written, wanted=error.wanted) from None
        except OSError as error:
            problem = f"cannot be reached ({with_store(location, error)})"
            raise InputError(problem, file=loaded.path, field=field, value=written) from None
        if not found:
            wanted = f"a {kind} at {location}"
            raise InputError(f"no such {kind}", file=loaded.path, field=field, value=written, wanted=wanted)


def _check_folders(loaded: LoadedManifest, split: str) -> None:
    """Refuses what does not go with `format: folders`."""
    settings = loaded.split(split)
    for name in NOT_OF_FOLDERS:
        if name in loaded.manifest.splits[split].model_fields_set:
            raise InputError("does not go with `format: folders`", file=loaded.path, field=f"splits.{split}.{name}")
    if len(settings.record_files) != 1:
        field = f"splits.{split}.records"
        raise InputError("more than one folder", file=loaded.path, field=field, value=settings.records, wanted="one")
