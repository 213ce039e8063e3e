"""Real data of installable packages: icons of three published sets, their names and aliases as texts, shared categories.

Domains: Tabler (drawn with lines), Font Awesome (solid) and Material Design Icons, the target. The packages come from the
configured npm registry into a cache; nothing of them is kept in the project. Names that several sets share are given to
one of them, and validation holds first words that training does not have, so no name decides by itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path.parser import parse_path

from datasets_manifest.errors import InputError

PACKAGES = {
    "tabler": "@tabler/icons@3.51.0",
    "fontawesome": "@fortawesome/fontawesome-free@7.3.1",
    "mdi": "@mdi/svg@7.4.47",
}
# Each class by the categories of the three sets.
CLASSES: dict[str, dict[str, list[str]]] = {
    "arrows": {"tabler": ["Arrows"], "fontawesome": ["arrows"], "mdi": ["Arrow"]},
    "places": {"tabler": ["Buildings"], "fontawesome": ["buildings"], "mdi": ["Places"]},
    "food": {"tabler": ["Food"], "fontawesome": ["food-beverage", "fruits-vegetables"], "mdi": ["Food / Drink"]},
    "vehicles": {
        "tabler": ["Vehicles"],
        "fontawesome": ["automotive", "transportation"],
        "mdi": ["Automotive", "Transportation + Road", "Transportation + Other", "Transportation + Flying"],
    },
    "health": {"tabler": ["Health"], "fontawesome": ["medical-health"], "mdi": ["Medical / Hospital"]},
    "nature": {
        "tabler": ["Weather", "Nature", "Animals"],
        "fontawesome": ["weather", "nature", "animals"],
        "mdi": ["Weather", "Nature", "Animal"],
    },
    "play": {
        "tabler": ["Sport", "Games"],
        "fontawesome": ["sports-fitness", "gaming"],
        "mdi": ["Sport", "Gaming / RPG"],
    },
    "money": {
        "tabler": ["E-commerce", "Currencies"],
        "fontawesome": ["shopping", "money"],
        "mdi": ["Shopping", "Banking", "Currency"],
    },
    "files": {"tabler": ["Document"], "fontawesome": ["files"], "mdi": ["Files / Folders"]},
    "devices": {
        "tabler": ["Devices", "Computers"],
        "fontawesome": ["devices-hardware"],
        "mdi": ["Device / Tech", "Cellphone / Phone"],
    },
}
VAL_SHARE, MOST_WORDS, PIXELS, SCALE = 0.25, 6, 96, 4


@dataclass(frozen=True)
class Icon:
    """One drawing: SVG path data in a square box of `box` units, from (0, 0); filled, or drawn with lines of 2 units."""

    name: str
    words: list[str]
    categories: list[str]
    paths: list[str]
    box: float
    lines: bool


def write_icons(out: Path, cache: Path, *, seed: int) -> list[Path]:
    """Writes a manifest a domain below `out`, the target last.

    Args:
        cache: where the packages are kept.
        seed: of who gets a shared name, and of the split.

    Raises:
        InputError: npm is missing or does not give a package.
    """
    sets = {"tabler": _tabler(cache), "fontawesome": _fontawesome(cache), "mdi": _mdi(cache)}
    owners: dict[str, list[str]] = {}
    for domain, icons in sets.items():
        for icon in icons:
            owners.setdefault(icon.name, []).append(domain)
    manifests = []
    for domain, icons in sets.items():
        own = [icon for icon in icons if _pick(owners[icon.name], f"{seed}/{icon.name}") == domain]
        manifests.append(_write_domain(out / domain, domain, own, seed))
    return manifests


def _write_domain(folder: Path, domain: str, icons: list[Icon], seed: int) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    of_category = {name: label for label, sets in CLASSES.items() for name in sets[domain]}
    records: dict[str, list[str]] = {"train": [], "val": []}
    for icon in icons:
        labels = {of_category[name] for name in icon.categories if name in of_category}
        if len(labels) != 1:
            continue
        cv2.imwrite(str(folder / "images" / f"{icon.name}.png"), draw(icon))
        split = "val" if number_of(f"{seed}/{icon.name.split('-')[0]}") < VAL_SHARE else "train"
        name = icon.name.replace("-", " ")
        words = [word for word in dict.fromkeys(icon.words) if word.replace("-", " ") != name]
        text = ", ".join([name, *words[:MOST_WORDS]])
        record = {"id": icon.name, "text": text, "image": f"images/{icon.name}.png", "label": labels.pop()}
        records[split].append(json.dumps(record) + "\n")
    for split, lines in records.items():
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    splits = {split: {"records": f"{split}.jsonl"} for split in records}
    manifest = {"schema_version": 1, "name": domain, "classes": list(CLASSES), "splits": splits}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return folder / "manifest.yaml"


def number_of(text: str) -> float:
    """0 to 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _pick(choices: list[str], text: str) -> str:
    return choices[int(number_of(text) * len(choices))]


class _Outline(BasePen):
    """Collects the polygons of a path; `BasePen` turns every curve into cubic ones."""

    def __init__(self) -> None:
        super().__init__(None)
        self.polygons: list[list[tuple[float, float]]] = []

    def _moveTo(self, pt: tuple[float, float]) -> None:
        self.polygons.append([pt])

    def _lineTo(self, pt: tuple[float, float]) -> None:
        self.polygons[-1].append(pt)

    def _curveToOne(self, pt1: Any, pt2: Any, pt3: Any) -> None:
        start = np.array(self.polygons[-1][-1])
        for t in np.linspace(0, 1, 9)[1:]:
            point = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * np.array(pt1)
            point += 3 * (1 - t) * t**2 * np.array(pt2) + t**3 * np.array(pt3)
            self.polygons[-1].append((float(point[0]), float(point[1])))

    def _closePath(self) -> None:
        self.polygons[-1].append(self.polygons[-1][0])


def draw(icon: Icon) -> np.ndarray:
    """Black on white, uint8 [PIXELS, PIXELS]."""
    size = PIXELS * SCALE
    canvas = np.full((size, size), 255, np.uint8)
    pen = _Outline()
    for path in icon.paths:
        parse_path(path, pen)
    unit, margin = 0.875 * size / icon.box, size / 16
    polygons = [np.round(np.array(polygon) * unit + margin).astype(np.int32) for polygon in pen.polygons]
    if icon.lines:
        cv2.polylines(canvas, polygons, False, 0, round(2 * unit))
    else:
        cv2.fillPoly(canvas, polygons, 0)
    return cv2.resize(canvas, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)


def _tabler(cache: Path) -> list[Icon]:
    facts = json.loads(_read(cache, "tabler", "icons.json"))
    nodes = json.loads(_read(cache, "tabler", "tabler-nodes-outline.json"))
    return [
        Icon(name, [str(tag) for tag in fact["tags"]], [fact["category"]], [a["d"] for _, a in nodes[name]], 24, True)
        for name, fact in facts.items()
        if name in nodes and all(kind == "path" for kind, _ in nodes[name])
    ]


def _fontawesome(cache: Path) -> list[Icon]:
    facts = json.loads(_read(cache, "fontawesome", "metadata/icon-families.json"))
    categories = yaml.safe_load(_read(cache, "fontawesome", "metadata/categories.yml"))
    icons = []
    for name, fact in facts.items():
        drawing = fact["svgs"].get("classic", {}).get("solid")
        if drawing is None:
            continue
        of = [category for category, content in categories.items() if name in content["icons"]]
        box = max(drawing["viewBox"][2:])
        icons.append(Icon(name, [str(t) for t in fact["search"]["terms"]], of, [drawing["path"]], box, False))
    return icons


def _mdi(cache: Path) -> list[Icon]:
    icons = []
    with tarfile.open(package_archive(cache, "mdi")) as archive:
        facts = {fact["name"]: fact for fact in json.loads(member_of(archive, "meta.json"))}
        for member in archive.getmembers():
            name = Path(member.name).stem
            if member.name.endswith(".svg") and name in facts:
                path = member_of(archive, f"svg/{name}.svg").split(' d="')[1].split('"')[0]
                words = [alias.replace("-", " ") for alias in facts[name]["aliases"]]
                icons.append(Icon(name, words, facts[name]["tags"], [path], 24, False))
    return icons


def _read(cache: Path, package: str, member: str) -> str:
    with tarfile.open(package_archive(cache, package)) as archive:
        return member_of(archive, member)


def member_of(archive: tarfile.TarFile, member: str) -> str:
    content = archive.extractfile(f"package/{member}")
    if content is None:
        raise InputError("the package has no such file", file=archive.name and Path(str(archive.name)), value=member)
    return content.read().decode()


def package_archive(cache: Path, package: str, packages: dict[str, str] = PACKAGES) -> Path:
    """The package's archive, fetched once."""
    folder = cache / package
    found = list(folder.glob("*.tgz"))
    if found:
        return found[0]
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is missing", value="npm", wanted="npm, which fetches the icon packages")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([npm, "pack", "--silent", packages[package]], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError("npm does not give the package", value=packages[package], wanted="a reachable npm registry")
    return next(folder.glob("*.tgz"))
