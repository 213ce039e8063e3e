"""A folder with a subfolder of pictures for each class → raw records.

    <folder>/<class>/a.jpg      labelled; a text beside it, a.txt, is the record's text
    <folder>/b.jpg              unlabelled

Deeper folders are part of the picture's name. Hidden files are ignored; what else is neither a picture nor a picture's
text is named.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets_manifest.errors import InputError, composed
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.storage import Location
from datasets_manifest.records.picture_formats import PICTURES, UNREAD_PICTURES

_TEXT = ".txt"


def list_pictures(
    folder: Location, left_alone: list[str], *, allow_outside: bool = False
) -> Iterator[tuple[str, str | None, str | None]]:
    """(path below the folder, text, class name) of each picture, by path; the path is the record's id, too.

    Args:
        left_alone: takes a sentence for each kind of file that is no record and no text of one.
        allow_outside: links may lead out of the folder.

    Raises:
        InputError: the folder cannot be listed, holds no picture, a link to a folder leads out of it, or a text is not
            UTF-8.
    """
    try:
        files = storage.list_files(folder, allow_outside=allow_outside)
    except OSError as error:
        raise InputError(f"cannot be listed ({error})", file=folder) from None
    visible = [path for path in files if not any(part.startswith(".") for part in path.split("/"))]
    _refuse_links_outside(folder, visible, allow_outside)
    pictures = [path for path in visible if _ending(path) in PICTURES]
    if not pictures:
        endings = Counter(_ending(path) for path in visible)
        found = ", ".join(f"{count} of {ending or 'no ending'}" for ending, count in endings.most_common(5)) or None
        wanted = f"<class>/<picture> with {', '.join(PICTURES)}"
        raise InputError("no picture in the folder", file=folder, value=found, wanted=wanted)
    texts = {_stem(path): path for path in visible if _ending(path) == _TEXT}
    left_alone += _left_alone(visible, {_stem(path) for path in pictures})
    for path in pictures:
        beside = texts.get(_stem(path))
        label = path.split("/")[0] if "/" in path else None
        yield path, _read_text(folder, beside) if beside is not None else None, label


def _ending(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _stem(path: str) -> str:
    """Without ending; accents composed, since systems write them in either way."""
    return composed(posixpath.splitext(path)[0])


def _refuse_links_outside(folder: Location, paths: Sequence[str], allow_outside: bool) -> None:
    if not isinstance(folder, Path) or allow_outside:
        return
    root = folder.resolve()
    for path in paths:
        if os.path.isdir(folder / path) and not (folder / path).resolve().is_relative_to(root):
            wanted = "a folder inside (or `allow_outside_root: true` in the split)"
            raise InputError("a symbolic link leads out of the folder", file=folder, value=path, wanted=wanted)


def _left_alone(paths: Sequence[str], stems: set[str]) -> list[str]:
    """A sentence for each kind of file that is left alone."""
    unread = [path for path in paths if _ending(path) in UNREAD_PICTURES]
    alone = [path for path in paths if _ending(path) == _TEXT and _stem(path) not in stems]
    others = [path for path in paths if _ending(path) not in (*PICTURES, *UNREAD_PICTURES, _TEXT)]
    kinds = {
        "of a picture format that is not read here": unread,
        "texts without a picture of their name": alone,
        "neither pictures nor texts": others,
    }
    return [
        f"{len(found):,} file{'s are' if len(found) != 1 else ' is'} left alone ({kind}), e.g. {found[0]}"
        for kind, found in kinds.items()
        if found
    ]


def _read_text(folder: Location, path: str) -> str:
    # Not storage.locate(): a folder may be called "~".
    file: Location = f"{folder.rstrip('/')}/{path}" if isinstance(folder, str) else folder / path
    try:
        text = storage.read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", file=file, wanted="a text saved as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    if "\0" in text:
        raise InputError("holds a NUL byte", file=file, wanted="a text saved as UTF-8")
    return text
