"""Which records of an undivided data set are for validation."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from datasets_manifest.manifest.keys import Division


def divide(table: pa.Table, division: Division) -> np.ndarray:
    """bool [rows]: whether each row of a split's table belongs to `val`. A pure function of the rows and `division`.

    Records of the same texts and pictures stay together, or what is measured on `val` would have been trained on. Records
    without content are not for `val`. Each class (and the unlabelled) gives the same fraction, at least one group of
    records if it has several.
    """
    texts, images, labels = (table[name].to_pylist() for name in ("texts", "images", "label"))
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for row, (sentences, paths) in enumerate(zip(texts, images, strict=True)):
        if sentences or paths:
            groups[tuple(sentences), tuple(paths)].append(row)
    strata: dict[int, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        strata[labels[rows[0]] if division.stratify else 0].append(rows)
    chosen = np.zeros(table.num_rows, dtype=bool)
    rng = np.random.default_rng(division.seed)
    for label in sorted(strata):
        members = strata[label]
        count = min(max(round(division.val * len(members)), 1), len(members) - 1)
        for number in rng.permutation(len(members))[:count]:
            chosen[members[number]] = True
    return chosen
