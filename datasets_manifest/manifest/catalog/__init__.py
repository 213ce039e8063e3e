"""The data sets known by name, and where they are on this machine.

`catalog:AVA` may stand wherever a manifest's path may. The data set's folder is `<data root>/AVA`, the published split
lists in it are `train.json` and `val.json`. The data root is given once: `--data-root`, M2CAN_DATA_ROOT, or `data_root:`
in the configuration file. A reference can name other locations: `catalog:AVA?root=/photos/ava&train=/lists/a.json`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import yaml
from pydantic import BaseModel, ConfigDict

from datasets_manifest.errors import InputError, first_line, nearest
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.storage import Location

DATA_ROOT, CONFIG = "M2CAN_DATA_ROOT", "M2CAN_CONFIG"
_PREFIX = "catalog:"
_LOCATIONS = ("root", "train", "val")


class Entry(BaseModel):
    """What is known of a data set; "unknown" where nothing is.

    layout: the template of its pictures below its folder (see image_template); empty for sets that have manifests.
    domains: of a set of several domains, each with a manifest of its own in the folder of its name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str
    classes: list[str]
    counts: dict[str, int]
    layout: str = ""
    domains: list[str] = []
    label_rule: str
    source: str
    terms: str


@dataclass(frozen=True)
class Reference:
    """A parsed `catalog:` reference; `locations`: root, train and val, where it names them."""

    entry: Entry
    domain: str | None
    locations: dict[str, str]


def is_reference(written: str) -> bool:
    return written.startswith(_PREFIX)


def reference(name: str, **locations: str) -> str:
    """The inverse of `parse_reference`; `locations`: root, train, val."""
    return f"{_PREFIX}{name}" + (f"?{urlencode(locations, quote_via=quote, safe='/:')}" if locations else "")


def entries() -> dict[str, Entry]:
    """All entries by name."""
    texts = [file.read_text(encoding="utf-8") for file in files(__name__).iterdir() if file.name.endswith(".yaml")]
    found = [Entry.model_validate(yaml.safe_load(text)) for text in texts]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name.lower())}


def find(name: str) -> Entry:
    """Raises InputError: no such entry; names the nearest one."""
    known = entries()
    if name not in known:
        folded = {each.lower(): each for each in known}
        close = folded.get(nearest(name.lower(), folded) or "")
        wanted = f"one of {', '.join(known)}" + (f" (nearest: {close})" if close else "")
        raise InputError("the catalog has no such data set", field="catalog", value=name, wanted=wanted)
    return known[name]


def parse_reference(written: str) -> Reference:
    """Raises InputError: no such data set or domain, or an unknown location."""
    name, _, query = written.removeprefix(_PREFIX).partition("?")
    name, _, domain = name.partition("/")
    entry = find(name)
    locations = dict(parse_qsl(query, keep_blank_values=True))
    for key in locations:
        if key not in _LOCATIONS:
            raise InputError(f"unknown location `{key}`", file=written, wanted=f"one of {', '.join(_LOCATIONS)}")
    if (domain not in entry.domains) if entry.domains else domain:
        names = ", ".join(f"{_PREFIX}{name}/{each}" for each in entry.domains) or f"{_PREFIX}{name}"
        raise InputError("no such domain", file=written, value=domain, wanted=names)
    if entry.domains and locations.keys() - {"root"}:
        raise InputError("its domains have manifests, not lists", file=written, wanted="no location but `root`")
    return Reference(entry, domain or None, locations)


def resolve(written: str) -> dict[str, Any] | Location:
    """The manifest of a reference: its content, with absolute locations, or its file.

    Raises:
        InputError: no such data set, or its location is not known.
    """
    found = parse_reference(written)
    entry, locations = found.entry, found.locations
    # Lists that are all given need no root but the pictures' own.
    root = _absolute(locations["root"]) if "root" in locations else storage.locate(data_root(), entry.name)
    if found.domain is not None:
        return storage.locate(root, f"{found.domain}/manifest.yaml")
    splits = {
        split: {
            "records": str(
                _absolute(locations[split]) if split in locations else storage.locate(root, f"{split}.json")
            ),
            "image_root": str(root),
            "image_template": entry.layout,
        }
        for split in entry.counts
    }
    return {"name": entry.name, "classes": entry.classes, "splits": splits}


def data_root() -> Location:
    """Where data sets are.

    Raises:
        InputError: it is not set, or the configuration file cannot be read.
    """
    root = os.environ.get(DATA_ROOT) or _configured(config_file())
    if not root:
        wanted = f"--data-root, {DATA_ROOT}, or `data_root: …` in {config_file()}"
        raise InputError("the folder of the data sets is not known", field="data root", wanted=wanted)
    return _absolute(root)


def config_file() -> Path:
    """M2CAN_CONFIG, or m2can/config.yaml in the user's configuration folder."""
    if os.environ.get(CONFIG):
        return Path(os.environ[CONFIG])
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "m2can" / "config.yaml"


def _configured(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read ({first_line(error)})", file=file) from None
    if not isinstance(content, dict) or not isinstance(content.get("data_root"), str):
        raise InputError("does not say where data are", file=file, value=content, wanted="`data_root: <folder>`")
    for key in content:
        if key != "data_root":
            raise InputError(f"unknown key `{key}`", file=file, wanted="`data_root`")
    # Relative to the configuration file, as in manifests and recipes.
    return str(storage.locate(file.absolute().parent, content["data_root"]))


def _absolute(written: str) -> Location:
    return storage.locate(Path.cwd(), written)
