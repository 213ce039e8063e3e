"""Pages: HTML files that need nothing else, made from the templates.

Text from data is escaped wherever it enters. A page loads nothing and runs no script but its own (its policy names the
script's hash). It follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from datasets_manifest.stream.images import read_picture_bytes
from datasets_manifest.stream.images import thumbnail as small_picture
from datasets_manifest.stream.picture_files import BadPicture
from trainers.reports.charts import COLOURS, look, percent, plain

REPORT = "report.html"  # where a run, a sweep or a comparison keeps its page
THUMBNAIL = 160  # pixels of the longer side


def render(
    template: str, title: str, *, package: str = "trainers.reports", script: str = "", kinds: int = 0, **content: object
) -> str:
    """The whole page.

    Args:
        template: a file in `templates` of the package, or of trainers.reports.
        script: name of a JavaScript file beside the template.
        kinds: how many colours and markers the page needs, if more than there are colours.
        content: what the template reads.
    """
    environment = _environment(package)
    source = ""
    if script:
        assert environment.loader is not None
        source = environment.loader.get_source(environment, script)[0]
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return environment.get_template(template).render(
        title=title,
        script=Markup(source),
        script_source=Markup(f"'sha256-{digest}'" if script else "'none'"),
        looks=[look(kind) for kind in range(max(kinds, len(COLOURS)))],
        **content,
    )


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 record`, `1,200 records`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def thumbnail(path: str) -> str:
    """A small picture as a data address, or the reason why there is none."""
    try:
        small = small_picture(read_picture_bytes(path), THUMBNAIL)
    except BadPicture as bad:
        return bad.problem
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"


def numeric_columns(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[bool]:
    """Which columns hold numbers alone, as people read them: `12`, `55.5 %`, `0.71 ± 0.02`."""
    return [all(_is_number(row[i]) for row in rows if row[i] not in ("", "–")) for i in range(len(head))]


def _is_number(cell: object) -> bool:
    if isinstance(cell, Markup) or not isinstance(cell, str):
        return isinstance(cell, int | float)
    return cell.lstrip("-−")[:1].isdigit()


@cache
def _environment(package: str) -> Environment:
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("trainers.reports")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, plain=plain, counted=counted)
    made.globals.update(numeric_columns=numeric_columns, thumbnail=thumbnail)
    return made
