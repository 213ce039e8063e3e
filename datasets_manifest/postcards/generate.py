"""The built-in data set "postcards": three domains of captioned pictures with a feeling, made by seed, written to disk.

The files are what a user would bring (a manifest, JSON lines and real JPEG or PNG files), so a demo goes the way of any
data. Of every 100 samples about ten have pictures that show another feeling than label and caption, and some
captions and some pictures show none, so neither modality is enough by itself. The target's labels stand in its files
for reporting only; training must not read them.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from datasets_manifest.errors import InputError
from datasets_manifest.files import remove_left, whole_folder
from datasets_manifest.postcards.art import STYLES, encode, picture
from datasets_manifest.postcards.words import CLASSES, DOMAINS, caption

VERSION: Final = 2  # raise it with every change of what is written, so that older data are replaced
SOURCES: Final = ("seaside", "city")
TARGET: Final = "mountain"
STAMP: Final = "postcards.json"

LABEL_SHARES: Final = {  # in the order of CLASSES
    "seaside": (0.30, 0.32, 0.38),
    "city": (0.36, 0.34, 0.30),
    "mountain": (0.40, 0.25, 0.35),
}
MISMATCH_SHARE: Final = 0.10  # of samples whose pictures show the feeling of another class
BLANK_SHARE: Final = 0.12  # of pictures that show no feeling
TWO_PICTURES_SHARE: Final = 0.35


def write_postcards(out: str | Path, *, seed: int = 0, train: int = 600, val: int = 200) -> dict[str, Path]:
    """Writes the data set below `out`, unless the same one is there already.

    Args:
        out: folder to make; one that holds anything else than postcards is refused.
        seed: the same seed gives the same bytes on the same machine.
        train: samples of the train split of each domain.
        val: samples of the val split of each domain.

    Returns:
        The manifest of each domain, the sources first.

    Raises:
        InputError: a count below one, a negative seed, or an `out` that is not a folder of postcards.
    """
    for field, value, least in (("seed", seed, 0), ("train", train, 1), ("val", val, 1)):
        if value < least:
            raise InputError("is too small", field=field, value=value, wanted=f"at least {least}")
    out, wanted = Path(out), {"generator": "postcards", "version": VERSION, "seed": seed, "train": train, "val": val}
    remove_left(out)
    if not _is_there(out, wanted):
        _refuse_foreign(out)
        _write(out, wanted)
    return {domain: out / domain / "manifest.yaml" for domain in DOMAINS}


def _stamp(out: Path) -> dict[str, Any]:
    """What the stamp of `out` says; empty without a readable one."""
    try:
        stamp = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _is_there(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether `out` holds the data set of these parameters and no file of it was lost since."""
    stamp = _stamp(out)
    return {name: stamp.get(name) for name in wanted} == wanted and stamp.get("files") == _count_files(out)


def _count_files(out: Path) -> int:
    return sum(len(files) for domain in DOMAINS for _, _, files in os.walk(out / domain))


def _refuse_foreign(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("is not a folder", file=out, wanted="a folder for the generated data set")
    if any(out.iterdir()) and _stamp(out).get("generator") != "postcards":
        raise InputError("holds other files, which would be lost", file=out, wanted="an empty or a new folder")


def _write(out: Path, wanted: dict[str, Any]) -> None:
    try:
        with whole_folder(out, replace=True) as draft:
            for domain in DOMAINS:
                _write_domain(draft / domain, domain, wanted)
            (draft / STAMP).write_text(json.dumps(wanted | {"files": _count_files(draft)}) + "\n", encoding="utf-8")
    except OSError:
        # Another process may have written the same data set in the meantime.
        if not _is_there(out, wanted):
            raise


def _write_domain(folder: Path, domain: str, wanted: dict[str, Any]) -> None:
    (folder / "images").mkdir(parents=True)
    splits = ("train", "val")
    for split in splits:
        lines = [json.dumps(record) + "\n" for record in _records(folder, domain, split, wanted["seed"], wanted[split])]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "name": domain,
        "classes": list(CLASSES),
        "splits": {split: {"records": f"{split}.jsonl"} for split in splits},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")


def _records(folder: Path, domain: str, split: str, seed: int, count: int) -> list[dict[str, Any]]:
    """The records of one split, after writing their pictures below `folder`."""
    key = (seed, DOMAINS.index(domain), ("train", "val").index(split))
    labels = _labels(np.random.default_rng(np.random.SeedSequence(key)), LABEL_SHARES[domain], count)
    records = []
    for index, label in enumerate(labels):
        rng = np.random.default_rng(np.random.SeedSequence([*key, index]))
        name = f"{domain}-{split}-{index:05d}"
        text = caption(rng, domain, CLASSES[label])
        image = _write_pictures(rng, folder, domain, name, label)
        records.append({"id": name, "text": text, "image": image, "label": CLASSES[label]})
    return records


def _labels(rng: np.random.Generator, shares: tuple[float, ...], count: int) -> list[int]:
    """`count` labels in random order, as near to `shares` as whole numbers allow."""
    ends = np.rint(np.cumsum(shares) * count).astype(int)
    labels = np.searchsorted(ends, np.arange(count), side="right")
    return [int(label) for label in rng.permutation(labels)]


def _write_pictures(rng: np.random.Generator, folder: Path, domain: str, name: str, label: int) -> list[str]:
    shown = label
    if rng.random() < MISMATCH_SHARE:
        shown = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES)
    paths = []
    for number in range(2 if rng.random() < TWO_PICTURES_SHARE else 1):
        mood = None if rng.random() < BLANK_SHARE else shown
        suffix = STYLES[domain].suffix
        path = f"images/{name}-{number}{suffix}"
        (folder / path).write_bytes(encode(picture(rng, domain, mood), suffix))
        paths.append(path)
    return paths
