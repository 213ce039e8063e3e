"""The records of a run's page: what was mistaken, and what the data was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.records.sharded_table import in_memory, labels_of
from trainers.reports.charts import percent
from trainers.reports.data_check_page import with_unlabelled
from trainers.reports.page import counted
from trainers.reports.sections import MOST_CLASSES, Run
from trainers.validators.inputs import spread

CARDS = 12
BAD_PICTURES = "bad_pictures.jsonl"
_EXAMPLES = 10
_MOST_COMPARED = 200_000  # records that are looked through for copies


def samples(run: Run) -> dict[str, Any]:
    """The most confident mistakes; without labels the records the model is least sure of."""
    corpus, classes, split = run.outcome.corpus, run.outcome.card.classes, run.validation
    target = run.of_target(split)
    part = next(p for p in (corpus.val[-1], corpus.train[-1]) if p is not None and p.split == split)
    wrong = np.flatnonzero((target["true"] >= 0) & (target["true"] != target["label"]))
    labelled = bool((target["true"] >= 0).any())
    rows = (
        wrong[np.argsort(-target["prob"][wrong], kind="stable")]
        if labelled
        else np.argsort(target["prob"], kind="stable")
    )
    rows = rows[:CARDS]
    cards = []
    places = part.start + (target["row"][rows] if "row" in target else rows)
    for row, record in zip(rows.tolist(), corpus.table.take(places).to_pylist(), strict=True):
        true = target["true"][row]
        heading = f"{classes[true] if true >= 0 else 'unlabelled'}:" if labelled else ""
        note = f"predicted {classes[target['label'][row]]}, {percent(float(target['prob'][row]))} sure."
        cards.append((record, heading, note))
    return {"labelled": labelled, "mistakes": len(wrong), "cards": cards}


def data(run: Run) -> dict[str, Any]:
    """Counts of every split, what was put right while reading, and pictures that could not be read."""
    corpus = run.outcome.corpus
    parts = [part for pair in zip(corpus.train, corpus.val, strict=True) for part in pair if part is not None]
    file = run.outcome.folder / BAD_PICTURES
    return {
        "rows": [_counts(corpus, part) for part in parts],
        "findings": _findings(corpus, parts),
        "compared": len(corpus.table) <= _MOST_COMPARED,
        "most_compared": _MOST_COMPARED,
        "classes": [(part.domain, part.split, _classes(corpus, part)) for part in parts],
        "notes": corpus.notes,
        "bad_pictures": _lines(file),
        "bad_pictures_file": BAD_PICTURES,
        "examples": _EXAMPLES,
    }


def _findings(corpus: Corpus, parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    """Facts about the data that bear on the results: (split, count, what)."""
    rows: list[tuple[str, str, str]] = []
    first: dict[tuple[object, ...], Part] = {}  # where a record's content is met first
    for part in parts:
        seen = corpus.table.slice(part.start, len(part))
        found = []
        for kind, name in (("texts", "text"), ("images", "picture")):
            lengths = (pc.list_value_length(batch.column(0)) for batch in seen.select([kind]).to_batches())
            found.append((sum(pc.sum(pc.equal(each, 0)).as_py() or 0 for each in lengths), f"without a {name}"))
        label = labels_of(seen)
        absent = [one for c, one in enumerate(corpus.classes) if (label >= 0).any() and not (label == c).any()]
        rows += [_finding(part, count, "record", said) for count, said in found if count]
        if absent:
            rows.append(_finding(part, len(absent), "class", f"without a record: {', '.join(absent[:_EXAMPLES])}"))
        if len(corpus.table) > _MOST_COMPARED:
            continue
        shared: dict[str, int] = {}
        seen = in_memory(seen)
        for texts, images in zip(seen["texts"].to_pylist(), seen["images"].to_pylist(), strict=True):
            other = first.setdefault((*texts, None, *images), part)
            if other is not part:
                where = f"{other.domain}/{other.split}"
                shared[where] = shared.get(where, 0) + 1
        for where, count in shared.items():
            rows.append(_finding(part, count, "record", f"that {'is' if count == 1 else 'are'} also in {where}"))
    return rows


def _finding(part: Part, count: int, noun: str, said: str) -> tuple[str, str, str]:
    plural = "classes" if noun == "class" else ""
    return f"{part.domain}/{part.split}", f"{count:,}", f"{counted(count, noun, plural).split(' ', 1)[1]} {said}"


def _counts(corpus: Corpus, part: Part) -> tuple[str, ...]:
    rows = corpus.table.slice(part.start, len(part))
    some = rows.select(["texts"]).take(spread(np.arange(len(part))))
    words = [sum(len(text.split()) for text in texts or []) for texts in some["texts"].to_pylist()]
    counts = (pc.list_value_length(batch.column(0)) for batch in rows.select(["images"]).to_batches())
    pictures = sum(pc.sum(each).as_py() or 0 for each in counts) / max(1, len(part))
    role = "target" if part.domain == corpus.target else "source"
    labelled = int((labels_of(rows) >= 0).sum())
    middle = f"{np.median(words):,.0f}" if words else "–"
    return (part.domain, role, part.split, f"{len(part):,}", f"{labelled:,}", middle, f"{pictures:.2f}")


def _classes(corpus: Corpus, part: Part) -> dict[str, int]:
    """Records by class; of many classes the largest, the others together."""
    label = labels_of(corpus.table.slice(part.start, len(part)))
    counts = np.bincount(label[label >= 0], minlength=len(corpus.classes))
    order: Sequence[int] = range(len(counts))
    if len(counts) > MOST_CLASSES:
        order = np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist()
    named = {corpus.classes[c]: int(counts[c]) for c in order}
    if len(counts) > MOST_CLASSES:
        named[f"({len(counts) - MOST_CLASSES} other classes)"] = int(counts.sum()) - sum(named.values())
    return with_unlabelled(named, int((label < 0).sum()))


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
