"""A folder with a subfolder of pictures for each class → raw records.

    <folder>/<class>/a.jpg      labelled; a text beside it, a.txt, is the record's text
    <folder>/b.jpg              unlabelled

Deeper folders are part of the picture's name. Hidden files, and files that are neither pictures nor texts, are ignored.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from datasets_manifest.errors import InputError
from datasets_manifest.manifest import storage
from datasets_manifest.manifest.storage import Location

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def list_pictures(folder: Location) -> Iterator[tuple[str, str | None, str | None]]:
    """(path below the folder, text, class name) of each picture, by path; the path is the record's id, too.

    Raises:
        InputError: the folder cannot be listed, holds no picture, or a text is not UTF-8.
    """
    try:
        files = storage.list_files(folder)
    except OSError as error:
        raise InputError(f"cannot be listed ({error})", file=folder) from None
    visible = [path for path in files if not any(part.startswith(".") for part in path.split("/"))]
    texts = {path for path in visible if path.endswith(".txt")}
    pictures = [path for path in visible if posixpath.splitext(path)[1].lower() in PICTURES]
    if not pictures:
        wanted = f"<class>/<picture> with {', '.join(PICTURES)}"
        raise InputError("no picture in the folder", file=folder, wanted=wanted)
    for path in pictures:
        beside = posixpath.splitext(path)[0] + ".txt"
        label = path.split("/")[0] if "/" in path else None
        yield path, _read_text(folder, beside) if beside in texts else None, label


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
