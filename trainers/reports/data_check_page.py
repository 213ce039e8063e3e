"""The page of a data check: findings, counts, samples of every split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datasets_manifest.checks.data_check import DataReport, SplitReport
from datasets_manifest.manifest.loading import LoadedManifest
from datasets_manifest.records.readers import read_split
from trainers.reports.page import render

SAMPLES = 12  # records of a split that are shown


def page(report: DataReport, manifests: Sequence[LoadedManifest]) -> str:
    """The page. The records shown are drawn with a fixed seed."""
    by_name = {manifest.name: manifest for manifest in manifests}
    return render(
        "data_check.html",
        "Data report",
        verdict="Training would be harmed: see ✖." if report.harmful else "Nothing here would harm training.",
        contents={},
        groups=report.grouped(),
        splits=[_split(split, by_name[split.domain]) for split in report.splits],
    )


def with_unlabelled(labels: dict[str, int], unlabelled: int) -> dict[str, int]:
    """Records by class, those without a label last."""
    return {**labels, "(unlabelled)": unlabelled} if unlabelled else labels


def _split(split: SplitReport, manifest: LoadedManifest) -> dict[str, Any]:
    spreads = {
        "words a record": split.words,
        "pictures a record": split.pictures_a_record,
        "shorter side, pixels": split.shorter_side,
    }
    table = read_split(manifest, split.split).table
    rows = np.sort(np.random.default_rng(0).permutation(table.num_rows)[:SAMPLES])
    return {
        "report": split,
        "labels": with_unlabelled(split.labels, split.unlabelled),
        "spread": [(name, *(f"{x:,.0f}" for x in values.values())) for name, values in spreads.items() if values],
        "samples": [
            (manifest.classes[record["label"]] if record["label"] >= 0 else "unlabelled", record)
            for record in table.take(rows).to_pylist()
        ],
    }
