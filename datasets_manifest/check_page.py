"""The data report as one HTML file that needs nothing else: tables, bars, thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from datasets_manifest.check import DataReport, Finding, SplitReport
from datasets_manifest.images import BadPicture, PictureViews, read_picture_bytes, thumbnail
from datasets_manifest.readers import read_split
from datasets_manifest.schema import LoadedManifest

SAMPLES = 12  # thumbnails of a split
_SIDE = 160

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #0072b2; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto } table { border-collapse: collapse } td, th { text-align: left; padding: .3rem .7rem .3rem 0;
vertical-align: top; border-bottom: 1px solid var(--line) } td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: inline-block; height: .8em; background: var(--bar); margin-right: .4em }
.fatal { font-weight: 700 } .fatal::before { content: "✖ " } .warning::before { content: "▲ " } .note::before { content: "● " }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; margin-top: 1rem }
figure { margin: 0 } figcaption { font-size: .8rem; overflow-wrap: anywhere } img { max-width: 100%; border-radius: 4px }
code { overflow-wrap: anywhere }
"""


def page(report: DataReport, manifests: Sequence[LoadedManifest]) -> str:
    """The page. Thumbnails are of records drawn with a fixed seed."""
    verdict = "Training would be harmed: see ✖." if report.harmful else "Nothing here would harm training."
    parts = [f"<h1>Data report</h1><p><strong>{verdict}</strong></p>", _findings(report.findings)]
    by_name = {manifest.name: manifest for manifest in manifests}
    for split in report.splits:
        parts.append(_split(split) + _cards(by_name[split.domain], split.split))
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>No findings.</p>"
    lines = [
        f'<tr><td class="{f.severity}">{f.severity}</td><td>{escape(f.domain)}/{escape(f.split)}</td>'
        f'<td class="n">{f.count:,}</td><td>{escape(f.message)}<br>'
        + "<br>".join(f"<code>{escape(example)}</code>" for example in f.examples)
        + "</td></tr>"
        for f in findings
    ]
    head = "<tr><th>severity</th><th>where</th><th>count</th><th>what</th></tr>"
    return f'<h2>Findings</h2><div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def _split(split: SplitReport) -> str:
    most = max([*split.labels.values(), split.unlabelled, 1])
    labels = {**split.labels, **({"(unlabelled)": split.unlabelled} if split.unlabelled else {})}
    bars = "".join(
        f"<tr><td>{escape(name)}</td><td class='n'>{count:,}</td>"
        f"<td><span class='bar' style='width:{12 * count / most:.2f}em'></span></td></tr>"
        for name, count in labels.items()
    )
    rows = [
        ("words a record", split.words),
        ("pictures a record", split.pictures_a_record),
        ("shorter side, pixels", split.shorter_side),
    ]
    head = "<tr><th></th><th>min</th><th>median</th><th>95 %</th><th>max</th></tr>"
    spread = "".join(
        f"<tr><td>{name}</td>" + "".join(f"<td class='n'>{value:,.0f}</td>" for value in values.values()) + "</tr>"
        for name, values in rows
        if values
    )
    return (
        f"<h2>{escape(split.domain)} / {escape(split.split)}</h2><p>{split.records:,} records, {split.pictures:,} pictures, "
        f"{split.picture_bytes / 1e6:,.1f} MB</p><div class='scroll'><table>{bars}</table>"
        f"<table>{head}{spread}</table></div>"
    )


def _cards(manifest: LoadedManifest, split: str) -> str:
    table = read_split(manifest, split).table
    rows = np.sort(np.random.default_rng(0).permutation(table.num_rows)[:SAMPLES])
    cards = []
    for record in table.take(rows).to_pylist():
        label = manifest.classes[record["label"]] if record["label"] >= 0 else "unlabelled"
        words = " ".join(" ".join(record["texts"]).split()[:25])
        picture = _picture(record["images"][0], record["id"]) if record["images"] else "<p>(no picture)</p>"
        cards.append(
            f"<figure>{picture}<figcaption><strong>{escape(label)}</strong> {escape(words)} "
            f"<code>{escape(record['id'])}</code></figcaption></figure>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _picture(path: str, identity: str) -> str:
    try:
        small = thumbnail(read_picture_bytes(path), _SIDE, PictureViews().max_pixels)
    except BadPicture as bad:
        return f"<p>({escape(bad.reason)})</p>"
    encoded = base64.b64encode(small).decode()
    return f'<img alt="picture of record {escape(identity)}" src="data:image/jpeg;base64,{encoded}">'
