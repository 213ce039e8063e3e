"""One HTML file that needs nothing else: the skeleton, the style and the small parts that all reports share.

Text that comes from data is escaped wherever it enters; only `Html` goes in as it is. The page may load nothing and run
no script but its own (its policy names the script's hash). Pages follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from datasets_manifest.stream.images import BadPicture, PictureViews, read_picture_bytes, thumbnail

REPORT = "report.html"  # where a run, a sweep or a comparison keeps its page
THUMBNAIL = 160  # pixels of the longer side

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --soft: #5b6470; --line: #8886; --bar: #0072b2;
--fill: 0, 114, 178 }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --page: #15181c; --soft: #a3acb8; --bar: #3d9bd6;
--fill: 61, 155, 214 } }
* { box-sizing: border-box }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--text);
background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } p { margin: .5rem 0; max-width: 48rem } .soft { color: var(--soft) }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: 0; list-style: none }
a, summary { color: inherit; text-underline-offset: .2em } summary { cursor: pointer; padding: .3rem 0 }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px }
.scroll { overflow-x: auto; margin: .5rem 0 } table { border-collapse: collapse } caption { text-align: left; color: var(--soft) }
td, th { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
overflow-wrap: normal } th[scope=row] { font-weight: 400 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td.n { white-space: nowrap }
.bar { display: inline-block; height: .8em; background: var(--bar); margin-right: .4em }
.fatal { font-weight: 700 } .fatal::before { content: "✖ " } .warning::before { content: "▲ " } .note::before { content: "● " }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; margin-top: 1rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; align-items: start }
figure { margin: 0; min-width: 0 } figcaption { font-size: .8rem } img { max-width: 100%; border-radius: 4px }
.charts figcaption { font-size: .95rem; font-weight: 600 }
"""


class Html(str):
    """Markup that may go into a page as it is."""


def html(content: object) -> Html:
    """Anything as markup: `Html` as it is, all else as escaped text."""
    return content if isinstance(content, Html) else Html(escape(str(content)))


def page(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """The whole file."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'"
    ending = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{style}</style></head><body>\n" + "\n".join(body) + f"\n{ending}</body></html>\n"
    )


def section(anchor: str, title: str, *parts: object) -> Html:
    """A part of the page with its heading; parts that are not `Html` become paragraphs."""
    inner = "\n".join(paragraph(part) for part in parts)
    anchor = re.sub(r"\W+", "-", anchor)
    return Html(f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{inner}</section>')


def paragraph(content: object) -> Html:
    return content if isinstance(content, Html) else Html(f"<p>{html(content)}</p>")


def contents(sections: Mapping[str, str]) -> Html:
    """Links to sections, {anchor: title}."""
    items = "".join(f'<li><a href="#{escape(a)}">{escape(title)}</a></li>' for a, title in sections.items())
    return Html(f'<nav aria-label="Contents"><ul>{items}</ul></nav>')


def details(summary: str, *parts: object) -> Html:
    """What opens when it is asked for."""
    inner = "".join(paragraph(part) for part in parts)
    return Html(f"<details><summary>{escape(summary)}</summary>{inner}</details>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], label: str) -> Html:
    """A table that scrolls by itself, by touch and by keyboard. Columns of numbers stand right.

    Args:
        label: says to those who cannot see it what the table holds.
    """
    lines = [list(row) for row in rows]
    right = [all(_numeric(row[i]) for row in lines if row[i] not in ("", "–")) for i in range(len(head))]
    marks = [' class="n"' if mark else "" for mark in right]
    top = "".join(f'<th scope="col"{mark}>{html(cell)}</th>' for cell, mark in zip(head, marks, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row"{mark}>{html(cell)}</th>' if i == 0 else f"<td{mark}>{html(cell)}</td>"
            for i, (cell, mark) in enumerate(zip(row, marks, strict=True))
        )
        + "</tr>"
        for row in lines
    )
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return scrolling(f"<table>{header}<tbody>{body}</tbody></table>", label)


def scrolling(markup: str, label: str) -> Html:
    """A wide part scrolls by itself, so that the page does not."""
    return Html(f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{markup}</div>')


def bar(share: float) -> Html:
    """A bar of `share`, 0 to 1."""
    return Html(f"<span class='bar' style='width:{12 * share:.2f}em'></span>")


def picture(path: str, identity: str) -> Html:
    """A thumbnail of the file, or why there is none."""
    try:
        small = thumbnail(read_picture_bytes(path), THUMBNAIL, PictureViews().max_pixels)
    except BadPicture as bad:
        return Html(f"<p>({escape(bad.reason)})</p>")
    encoded = base64.b64encode(small).decode()
    return Html(f'<img alt="picture of record {escape(identity)}" src="data:image/jpeg;base64,{encoded}">')


def cards(inner: Iterable[str]) -> Html:
    return Html(f'<div class="cards">{"".join(inner)}</div>')


def card(record: Mapping[str, object], identity: str, heading: str, note: str = "", words: int = 25) -> Html:
    """A record's first picture, its first words, its id.

    Args:
        record: `texts` and `images` of it.
    """
    texts, images = record["texts"] or [], record["images"] or []
    assert isinstance(texts, list) and isinstance(images, list)
    shown = picture(images[0], identity) if images else Html("<p>(no picture)</p>")
    text = " ".join(" ".join(texts).split()[:words])
    return Html(
        f"<figure>{shown}<figcaption><strong>{escape(heading)}</strong> {escape(note)} {escape(text)} "
        f"<code>{escape(identity)}</code></figcaption></figure>"
    )


def _numeric(cell: object) -> bool:
    """Whether a cell is a number as people read it: `12`, `55.5 %`, `0.71 ± 0.02`."""
    if isinstance(cell, Html) or not isinstance(cell, str):
        return isinstance(cell, int | float)
    return cell[:1].isdigit() or (cell[:1] in "-−" and cell[1:2].isdigit())
