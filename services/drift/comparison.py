"""Whether records differ from those of training: class shares, confidence, facts of the inputs, features.

Every test is scipy's. As there are several, their p-values are adjusted together (Benjamini and Hochberg); and as a large
sample makes any difference certain, a difference is told only if it is also large.

Source of the procedure (tests of the predictions and of each reduced dimension): Rabanser, Günnemann and Lipton, "Failing
Loudly: An Empirical Study of Methods for Detecting Dataset Shift", NeurIPS 2019, arXiv:1810.11953.

Legend: see trainers.model.reference; M principal component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from datasets_manifest.errors import InputError
from trainers.model.reference import FACTS, Seen

Kind = Literal["classes", "confidence", "input", "features"]
P_BELOW = 0.01  # adjusted, of a difference that is told
EFFECT_FROM = 0.1  # likewise
FEWEST = 10  # records on either side
COMPONENTS = 8  # of the features, those with the most variance
_FEW_EXPECTED = 5  # records in a cell, below which the chi-square distribution does not hold


@dataclass(frozen=True)
class Comparison:
    """One test. p: adjusted. effect, 0 to 1: of class shares the part of the records that would have to change their class
    (total variation); else the largest difference of the two cumulated distributions (the KS statistic). before, now: the
    medians; None of classes. moved: whether both are beyond their bounds.
    """

    kind: Kind
    what: str
    test: str
    p: float
    effect: float
    before: float | None = None
    now: float | None = None
    moved: bool = False


@dataclass(frozen=True)
class Drift:
    """All comparisons of some records with those of training.

    records, reference_records: how many on each side. shares_before, shares_now: predicted classes, 0 to 1. smallest: effect
    that so many records show by a single test at P_BELOW.
    """

    records: int
    reference_records: int
    classes: list[str]
    shares_before: list[float]
    shares_now: list[float]
    comparisons: list[Comparison]
    smallest: float

    @property
    def moved(self) -> list[Comparison]:
        return [one for one in self.comparisons if one.moved]

    def of(self, kind: Kind) -> list[Comparison]:
        return [one for one in self.comparisons if one.kind == kind]


def compare(before: Seen, now: Seen, classes: Sequence[str]) -> Drift:
    """Compare records with those of training, of which `before` is the sample.

    Raises:
        InputError: too few records to compare, or predictions of another number of classes.
    """
    for seen, where in ((before, "the reference"), (now, "--on")):
        if len(seen) < FEWEST:
            problem = "has too few records that could be predicted"
            raise InputError(problem, field=where, value=len(seen), wanted=f"at least {FEWEST}")
    if before.probs_NC.shape[1] != now.probs_NC.shape[1]:
        raise InputError("was predicted with other classes", field="--on", value=now.probs_NC.shape[1])
    counts = [np.bincount(seen.probs_NC.argmax(1), minlength=len(classes)) for seen in (before, now)]
    found = [_classes(*counts), _ks("confidence", "confidence", before.probs_NC.max(1), now.probs_NC.max(1))]
    for name, words in FACTS.items():
        values = before.fact(name), now.fact(name)
        if min(map(len, values)) >= FEWEST:
            found.append(_ks("input", words, *values))
    for number, values in enumerate(zip(*components(before.features_NK, now.features_NK), strict=True), start=1):
        found.append(_ks("features", f"features, component {number}", *values))
    adjusted = stats.false_discovery_control([one.p for one in found], method="bh")
    return Drift(
        records=len(now),
        reference_records=len(before),
        classes=list(classes),
        shares_before=(counts[0] / len(before)).tolist(),
        shares_now=(counts[1] / len(now)).tolist(),
        comparisons=[
            replace(one, p=float(p), moved=bool(p < P_BELOW and one.effect >= EFFECT_FROM))
            for one, p in zip(found, adjusted, strict=True)
        ],
        smallest=float(np.sqrt(np.log(2 / P_BELOW) / 2 * (1 / len(before) + 1 / len(now)))),
    )


def components(before_NK: np.ndarray, now_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides on the principal components of them together, [M, N] each; at most COMPONENTS of those that vary at all.

    Components of one side alone would fit its chance variance, and the other side would differ by that.
    """
    together = np.concatenate([before_NK, now_NK])
    centred = together - together.mean(0, dtype=np.float64)
    _, spread_M, axes_MK = np.linalg.svd(centred, full_matrices=False)
    on_axes = axes_MK[:COMPONENTS][spread_M[:COMPONENTS] > 1e-6 * max(spread_M[0], 1e-12)] @ centred.T
    return on_axes[:, : len(before_NK)], on_axes[:, len(before_NK) :]


def _classes(before_C: np.ndarray, now_C: np.ndarray) -> Comparison:
    effect = 0.5 * float(np.abs(before_C / before_C.sum() - now_C / now_C.sum()).sum())
    table = np.stack([before_C, now_C])[:, (before_C + now_C) > 0]
    if table.shape[1] < 2:  # one class alone on both sides
        return Comparison("classes", "predicted classes", "chi-square", 1.0, effect)
    few = stats.contingency.expected_freq(table).min() < _FEW_EXPECTED
    method = stats.MonteCarloMethod(rng=np.random.default_rng(0)) if few else None
    found = stats.chi2_contingency(table, correction=False, method=method)
    return Comparison("classes", "predicted classes", "chi-square", float(found.pvalue), effect)


def _ks(kind: Kind, what: str, before_N: np.ndarray, now_N: np.ndarray) -> Comparison:
    found = stats.ks_2samp(before_N, now_N)
    medians = float(np.median(before_N)), float(np.median(now_N))
    return Comparison(kind, what, "Kolmogorov-Smirnov", float(found.pvalue), float(found.statistic), *medians)


def in_words(drift: Drift) -> list[str]:
    """Whether the data moved, and a line for each way in which it did."""
    of = f"{drift.records:,} records against {drift.reference_records:,} of training"
    if not drift.moved:
        return [f"The data did not move: {of}, no difference of {EFFECT_FROM:g} or more that chance does not explain."]
    lines = [f"The data moved: {', '.join(_names(drift))} ({of})."]
    for one in drift.moved:
        if one.kind == "classes":
            changes = sorted(
                zip(drift.classes, drift.shares_before, drift.shares_now, strict=True), key=lambda c: -abs(c[2] - c[1])
            )
            shown = ", ".join(f"{name} {100 * before:.0f} → {100 * now:.0f} %" for name, before, now in changes[:3])
            lines.append(f"classes: {shown}; together {100 * one.effect:.0f} % of the records")
        elif one.kind != "features":
            lines.append(
                f"{one.what}: median {one.before:.3g} → {one.now:.3g}, distributions differ by {one.effect:.2f}"
            )
    features = drift.of("features")
    apart = [one.effect for one in features if one.moved]
    if apart:
        lines.append(f"features: {len(apart)} of {len(features)} components moved, the most by {max(apart):.2f}")
    return lines


def _names(drift: Drift) -> list[str]:
    names = {"classes": "classes", "confidence": "confidence", "features": "features"}
    return list(dict.fromkeys(names.get(one.kind, one.what) for one in drift.moved))
