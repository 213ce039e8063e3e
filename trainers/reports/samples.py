"""The report's records: what was mistaken, and what the data was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from datasets_manifest.manifest.corpus import Corpus, Part
from trainers.reports.charts import percent
from trainers.reports.data_check_page import labels_table
from trainers.reports.page import Html, card, cards, details, html, section, table
from trainers.reports.sections import NO_LABELS, Run
from trainers.validators.inputs import spread

CARDS = 12
BAD_PICTURES = "bad_pictures.jsonl"
_EXAMPLES = 10
_MOST_CLASSES = 30
_MOST_COMPARED = 200_000  # records that are looked through for copies


def samples(run: Run) -> Html:
    """The most confident mistakes; without labels the records the model is least sure of."""
    corpus, classes, split = run.outcome.corpus, run.outcome.card.classes, run.validation
    target = run.of_target(split)
    part = next(p for p in (corpus.val[-1], corpus.train[-1]) if p is not None and p.split == split)
    wrong = np.flatnonzero((target["true"] >= 0) & (target["true"] != target["label"]))
    labelled = bool((target["true"] >= 0).any())
    if labelled:
        title = "Most confident mistakes"
        rows = wrong[np.argsort(-target["prob"][wrong], kind="stable")][:CARDS]
        said = f"Of {len(wrong):,} mistakes among the {split} records, those the model is surest of."
    else:
        title = "Least certain records"
        rows = np.argsort(target["prob"], kind="stable")[:CARDS]
        said = NO_LABELS.format(split=split, what="mistakes are") + " These are the records the model is least sure of."
    made = []
    for row, record in zip(rows.tolist(), corpus.table.take(part.start + rows).to_pylist(), strict=True):
        true = classes[target["true"][row]] if target["true"][row] >= 0 else "unlabelled"
        note = f"predicted {classes[target['label'][row]]}, {percent(float(target['prob'][row]))} sure."
        made.append(card(record, record["id"], f"{true}:" if labelled else "", note))
    return section("samples", title, said, cards(made) if made else "There are none.")


def data(run: Run) -> Html:
    """Counts of every split, what was put right while reading, and pictures that could not be read."""
    corpus = run.outcome.corpus
    parts = [part for pair in zip(corpus.train, corpus.val, strict=True) for part in pair if part is not None]
    head = ("domain", "role", "split", "records", "with labels", "words, median", "pictures a record")
    rows = [_row(corpus, part) for part in parts]
    labels = [details(f"Classes of {part.domain}, {part.split}", _classes(corpus, part)) for part in parts]
    notes = [Html(f"<ul>{''.join(f'<li>{html(note)}</li>' for note in corpus.notes)}</ul>")] if corpus.notes else []
    return section(
        "data",
        "Data",
        Html(
            "<p>As the run read it. <code>m2can data check</code> also looks into every picture: damage, copies under other "
            "names, sizes.</p>"
        ),
        table(head, rows, "Domains and splits"),
        *_findings(corpus, parts),
        *labels,
        *notes,
        *_bad_pictures(run.outcome.folder / BAD_PICTURES),
    )


def _findings(corpus: Corpus, parts: Sequence[Part]) -> list[object]:
    """What people should know before they believe the numbers above."""
    rows: list[tuple[str, str, str]] = []
    first: dict[tuple[object, ...], Part] = {}
    for part in parts:
        seen = corpus.table.slice(part.start, len(part))
        name = f"{part.domain}/{part.split}"
        lacking = {kind: pc.sum(pc.equal(pc.list_value_length(seen[kind]), 0)).as_py() for kind in ("texts", "images")}
        rows += [(name, f"{lacking['texts']:,}", "records without a text")] if lacking["texts"] else []
        rows += [(name, f"{lacking['images']:,}", "records without a picture")] if lacking["images"] else []
        label = seen["label"].to_numpy()
        absent = [one for c, one in enumerate(corpus.classes) if (label >= 0).any() and not (label == c).any()]
        rows += (
            [(name, f"{len(absent)}", f"classes without a record: {', '.join(absent[:_EXAMPLES])}")] if absent else []
        )
        if len(corpus.table) > _MOST_COMPARED:
            continue
        shared: dict[str, int] = {}
        for texts, images in zip(seen["texts"].to_pylist(), seen["images"].to_pylist(), strict=True):
            other = first.setdefault((*texts, None, *images), part)
            if other is not part:
                where = f"{other.domain}/{other.split}"
                shared[where] = shared.get(where, 0) + 1
        rows += [(name, f"{count:,}", f"records that are also in {where}") for where, count in shared.items()]
    said = ["No split lacks texts, pictures or classes, and none has records of another."] if not rows else []
    if len(corpus.table) > _MOST_COMPARED:
        said = [f"With more than {_MOST_COMPARED:,} records copies were not looked for."]
    return [*([table(("split", "count", "what"), rows, "Findings")] if rows else []), *said]


def _row(corpus: Corpus, part: Part) -> tuple[str, ...]:
    rows = corpus.table.slice(part.start, len(part))
    some = rows.take(spread(np.arange(len(part))))
    words = [sum(len(text.split()) for text in texts or []) for texts in some["texts"].to_pylist()]
    pictures = pc.mean(pc.list_value_length(rows["images"])).as_py() or 0.0
    role = "target" if part.domain == corpus.target else "source"
    labelled = pc.sum(pc.greater_equal(rows["label"], 0)).as_py() or 0
    middle = f"{np.median(words):,.0f}" if words else "–"
    return (part.domain, role, part.split, f"{len(part):,}", f"{labelled:,}", middle, f"{pictures:.2f}")


def _classes(corpus: Corpus, part: Part) -> Html:
    label = corpus.table.slice(part.start, len(part))["label"].to_numpy()
    counts = np.bincount(label[label >= 0], minlength=len(corpus.classes))
    order: Sequence[int] = range(len(counts))
    if len(counts) > _MOST_CLASSES:
        order = np.argsort(-counts, kind="stable")[:_MOST_CLASSES].tolist()
    named = {corpus.classes[c]: int(counts[c]) for c in order}
    if len(counts) > _MOST_CLASSES:
        named[f"({len(counts) - _MOST_CLASSES} other classes)"] = int(counts.sum()) - sum(named.values())
    return labels_table(named, int((label < 0).sum()), f"{part.domain} / {part.split}")


def _bad_pictures(file: Path) -> list[object]:
    if not file.is_file():
        return ["No picture was found that could not be read."]
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    rows = [(entry["id"], entry["problem"]) for entry in found[:_EXAMPLES]]
    return [
        f"{len(found):,} pictures could not be read and counted as missing ({BAD_PICTURES} of the run); the first:",
        table(("record", "problem"), rows, "Pictures that could not be read"),
    ]
