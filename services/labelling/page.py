"""The page on which people label the suggested records: one HTML file that needs no server and sends nothing anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from datasets_manifest.stream.images import read_picture_bytes, thumbnail
from datasets_manifest.stream.picture_files import BadPicture
from services.labelling.suggest import Suggestion
from trainers.reports.page import counted, render

PICTURE_SIDE = 320  # pixels of the longer side
MOST_PICTURES = 4  # of a record


def labelling_page(suggestions: Sequence[Suggestion], classes: Sequence[str], target: str) -> str:
    """The page. The model's own guess is not on it: people would follow it.

    Args:
        classes: their names.
        target: name of the domain.
    """
    return render(
        "label.html",
        f"{counted(len(suggestions), 'record')} of {target} to label",
        package="services.labelling",
        script="label.js",
        verdict="Choose a class for each record, then save.",
        contents={},
        classes=list(classes),
        records=[(one, *_pictures(one.images)) for one in suggestions],
    )


def _pictures(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Small pictures as data addresses, and notes on those that are not shown."""
    shown, notes = [], []
    for path in paths[:MOST_PICTURES]:
        try:
            small = thumbnail(read_picture_bytes(path), PICTURE_SIDE)
        except BadPicture as bad:
            notes.append(bad.problem)
            continue
        shown.append(f"data:image/jpeg;base64,{base64.b64encode(small).decode()}")
    if len(paths) > MOST_PICTURES:
        notes.append(f"{counted(len(paths) - MOST_PICTURES, 'more picture')} not shown")
    return shown, notes
