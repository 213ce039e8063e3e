"""The data report as one HTML file that needs nothing else: tables, bars, thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets_manifest.checks.data_check import DataReport, Finding, SplitReport
from datasets_manifest.manifest.readers import read_split
from datasets_manifest.manifest.schema import LoadedManifest
from trainers.reports.page import Html, bar, card, cards, html, section, table
from trainers.reports.page import page as html_page

SAMPLES = 12  # thumbnails of a split


def page(report: DataReport, manifests: Sequence[LoadedManifest]) -> str:
    """The page. Thumbnails are of records drawn with a fixed seed."""
    verdict = "Training would be harmed: see ✖." if report.harmful else "Nothing here would harm training."
    parts = [f"<h1>Data report</h1><p><strong>{verdict}</strong></p>", _findings(report.findings)]
    by_name = {manifest.name: manifest for manifest in manifests}
    parts += [_split(split, by_name[split.domain]) for split in report.splits]
    return html_page("Data report", parts)


def _findings(findings: Sequence[Finding]) -> Html:
    if not findings:
        return Html("<p>No findings.</p>")
    rows = [
        (
            Html(f'<span class="{f.severity}">{f.severity}</span>'),
            f"{f.domain}/{f.split}",
            f"{f.count:,}",
            Html("<br>".join([html(f.message), *(f"<code>{html(example)}</code>" for example in f.examples)])),
        )
        for f in findings
    ]
    return section("findings", "Findings", table(("severity", "where", "count", "what"), rows, "Findings"))


def _split(split: SplitReport, manifest: LoadedManifest) -> Html:
    name = f"{split.domain} / {split.split}"
    counts = f"{split.records:,} records, {split.pictures:,} pictures, {split.picture_bytes / 1e6:,.1f} MB"
    return section(
        name,
        name,
        counts,
        labels_table(split.labels, split.unlabelled, name),
        _spread(split),
        _cards(manifest, split.split),
    )


def labels_table(labels: dict[str, int], unlabelled: int, where: str) -> Html:
    """Records by class, with bars."""
    most = max([*labels.values(), unlabelled, 1])
    shown = {**labels, **({"(unlabelled)": unlabelled} if unlabelled else {})}
    rows = [(name, f"{count:,}", bar(count / most)) for name, count in shown.items()]
    return table(("class", "records", ""), rows, f"Records by class, {where}")


def _spread(split: SplitReport) -> Html:
    rows = [
        ("words a record", split.words),
        ("pictures a record", split.pictures_a_record),
        ("shorter side, pixels", split.shorter_side),
    ]
    shown = [(name, *(f"{value:,.0f}" for value in values.values())) for name, values in rows if values]
    return table(("", "min", "median", "95 %", "max"), shown, f"Distributions, {split.domain} / {split.split}")


def _cards(manifest: LoadedManifest, split: str) -> Html:
    records = read_split(manifest, split).table
    rows = np.sort(np.random.default_rng(0).permutation(records.num_rows)[:SAMPLES])
    made = []
    for record in records.take(rows).to_pylist():
        label = manifest.classes[record["label"]] if record["label"] >= 0 else "unlabelled"
        made.append(card(record, record["id"], label))
    return cards(made)
