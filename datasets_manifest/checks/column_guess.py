"""Which column of a records file holds ids, texts, pictures and labels: guessed by names and contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets_manifest.records.picture_formats import PICTURES, UNREAD_PICTURES
from datasets_manifest.records.record_values import split_paths

Records = Sequence[dict[str, Any]]

NAMES = {
    "id": ("id", "uid", "key", "recordid", "identifier", "no", "nr", "number"),
    "text": ("text", "texts", "caption", "review", "description", "comment", "content", "body", "sentence", "title"),
    "image": (
        "image",
        "images",
        "picture",
        "pictures",
        "photo",
        "photos",
        "img",
        "imagepath",
        "file",
        "filename",
        "path",
    ),
    "label": (
        "label",
        "labels",
        "class",
        "category",
        "sentiment",
        "target",
        "emotion",
        "mood",
        "rating",
        "stars",
        "genre",
    ),
}
MOST_CLASSES = 50
_LOOKED_AT = 1000  # records


def guess_columns(records: Records) -> dict[str, str]:
    """Role → column, for the roles that a column was found for. Pictures are told by contents first, the others by name."""
    columns = list(dict.fromkeys(name for record in records[:_LOOKED_AT] for name in record))
    found: dict[str, str] = {}
    pictures = [name for name in columns if _share_of_pictures(records, name) > 0.5]
    if pictures:
        found["image"] = _named("image", pictures) or pictures[0]
    for role in ("image", "label", "text", "id"):
        left = [
            name for name in columns if name not in found.values() and (role != "id" or _is_distinct(records, name))
        ]
        if role not in found and (name := _named(role, left)) is not None:
            found[role] = name
    by_content = {"label": _most_like_labels, "text": _most_like_texts}
    for role, choose in by_content.items():
        left = [name for name in columns if name not in found.values()]
        if role not in found and (name := choose(records, left)) is not None:
            found[role] = name
    return found


def values(records: Records, column: str) -> list[Any]:
    """What is neither null nor blank in a column."""
    cells = [record.get(column) for record in records]
    return [cell for cell in cells if cell is not None and cell == cell and str(cell).strip()]


def pictures_of(records: Records, column: str, separator: str) -> list[str]:
    """All paths in a column, in order."""
    paths = []
    for cell in values(records, column):
        entries = split_paths(cell, separator)
        paths += [entry for entry in (entries if isinstance(entries, list) else [entries]) if entry]
    return [path for path in paths if isinstance(path, str)]


def is_picture(path: str) -> bool:
    """Whether the name ends as a picture's does, be the format read here or not: `data check` says which are not."""
    return path.lower().endswith((*PICTURES, *UNREAD_PICTURES))


def _share_of_pictures(records: Records, column: str) -> float:
    cells = values(records[:_LOOKED_AT], column)
    if not all(isinstance(cell, str | list) for cell in cells) or not cells:
        return 0.0
    return sum(is_picture(str(cell).rstrip("'\"] ;|,")) for cell in cells) / len(cells)


def _is_distinct(records: Records, column: str) -> bool:
    """Whether each record has a value of its own."""
    return len({str(cell) for cell in values(records, column)}) == len(records)


def _named(role: str, columns: Sequence[str]) -> str | None:
    """The column with one of the role's names, or with one as a part: `review_text`, `Image file`."""
    plain = {re.sub(r"[\W_]", "", name.casefold()): name for name in reversed(columns)}
    parts = {part: name for name in reversed(columns) for part in re.split(r"[\W_]+", name.casefold())}
    return next((names[name] for names in (plain, parts) for name in NAMES[role] if name in names), None)


def _most_like_labels(records: Records, columns: Sequence[str]) -> str | None:
    """The column of the fewest different short values, each several times."""
    candidates = []
    for name in columns:
        cells = [str(cell).strip() for cell in values(records, name)]
        distinct = len(set(cells))
        if 2 <= distinct <= min(MOST_CLASSES, len(cells) // 4) and max(map(len, cells)) <= 40:
            candidates.append((distinct, name))
    return min(candidates)[1] if candidates else None


def _most_like_texts(records: Records, columns: Sequence[str]) -> str | None:
    """The column of the most words a record, if these are two or more."""
    words: Counter[str] = Counter()
    for name in columns:
        cells = values(records[:_LOOKED_AT], name)
        if cells and all(isinstance(cell, str | list) for cell in cells):
            words[name] = sum(len(str(cell).split()) for cell in cells) // len(cells)
    best = words.most_common(1)
    return best[0][0] if best and best[0][1] >= 2 else None
