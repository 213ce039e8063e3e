"""Differences that are there are named, chance is not, and a large sample does not make a small difference one."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from datasets_manifest.errors import InputError
from services.drift.check import Checked
from services.drift.comparison import Drift, compare, in_words
from services.drift.page import drift_page
from trainers.model.reference import FACTS, Seen, SourceScores

CLASSES = ["negative", "neutral", "positive"]
SHARES = (0.4, 0.3, 0.3)


def draw(random: np.random.Generator, records: int, shares: tuple[float, ...] = SHARES, **facts: float) -> Seen:
    """Records of three clusters, one a class; `facts` are added to a fact's values."""
    label = random.choice(3, records, p=shares)
    centres = 2 * np.eye(3, 64)
    features = centres[label] + 0.3 * random.normal(size=(records, 64))
    probs = np.exp(4 * features[:, :3])
    columns = {
        "tokens": random.poisson(20, records),
        "unknown": random.beta(1, 20, records),
        "pictures": random.integers(0, 3, records),
        "brightness": random.normal(0.5, 0.1, records),
        "contrast": random.normal(0.2, 0.05, records),
    }
    values = np.column_stack([columns[name] + facts.get(name, 0.0) for name in FACTS])
    values[values[:, 2] == 0, 3:] = np.nan  # no picture
    return Seen(probs / probs.sum(1, keepdims=True), features, values)


def moved(drift: Drift) -> set[str]:
    return {one.what if one.kind == "input" else one.kind for one in drift.moved}


def test_chance_moves_nothing() -> None:
    random = np.random.default_rng(0)
    drifts = [compare(draw(random, 500), draw(random, records), CLASSES) for records in (40, 500) for _ in range(15)]
    assert sum(bool(drift.moved) for drift in drifts) <= 1
    (line,) = in_words(next(drift for drift in drifts if not drift.moved))
    assert line.startswith("The data did not move: 40 records against 500 of training")
    before = draw(random, 500)
    assert all(one.effect == 0 and not one.moved for one in compare(before, before, CLASSES).comparisons)


def test_what_moved_is_named() -> None:
    random = np.random.default_rng(1)
    before = draw(random, 500)
    assert moved(compare(before, draw(random, 300, brightness=-0.2, contrast=-0.05), CLASSES)) == {
        FACTS["brightness"],
        FACTS["contrast"],
    }
    assert moved(compare(before, draw(random, 300, tokens=15, unknown=0.3), CLASSES)) == {
        FACTS["tokens"],
        FACTS["unknown"],
    }
    other = compare(before, draw(random, 300, (0.1, 0.1, 0.8)), CLASSES)
    assert moved(other) >= {"classes", "features"}
    first, classes, *_ = in_words(other)
    assert first.startswith("The data moved: classes")
    assert re.fullmatch(r"classes: positive 29 → 78 %, negative .*, neutral .*; together 49 % of the records", classes)


def test_a_class_that_few_records_have_is_tested_exactly() -> None:
    random = np.random.default_rng(2)
    rare = compare(draw(random, 500, (0.5, 0.495, 0.005)), draw(random, 60, (0.5, 0.495, 0.005)), CLASSES)
    assert "classes" not in moved(rare)
    alone = compare(draw(random, 500, (1, 0, 0)), draw(random, 60, (1, 0, 0)), CLASSES)
    assert alone.of("classes")[0].p == 1


def test_a_small_difference_of_many_records_is_none() -> None:
    random = np.random.default_rng(3)
    drift = compare(draw(random, 60_000), draw(random, 60_000, brightness=-0.01), CLASSES)
    (brightness,) = (one for one in drift.comparisons if one.what == FACTS["brightness"])
    assert brightness.p < 1e-6 and brightness.effect < 0.1
    assert not drift.moved and drift.smallest < 0.01


def test_too_few_records_are_refused() -> None:
    random = np.random.default_rng(4)
    with pytest.raises(InputError, match="--on: has too few records that could be predicted; found 3; wanted at least"):
        compare(draw(random, 500), draw(random, 3), CLASSES)


def test_predictions_of_other_classes_are_refused() -> None:
    random = np.random.default_rng(4)
    two = draw(random, 500)
    two = replace(two, probs_NC=two.probs_NC[:, :2])
    with pytest.raises(InputError, match="--on: was predicted with other classes; found 2"):
        compare(draw(random, 500), two, CLASSES)


def test_the_page_says_it_in_words_and_numbers() -> None:
    random = np.random.default_rng(5)
    before, now = draw(random, 500), draw(random, 300, (0.1, 0.1, 0.8), brightness=-0.2)
    drift = compare(before, now, CLASSES)
    page = drift_page("m2can-<x>", Checked(drift, before, now, "sample.parquet", ["what to know"]))
    assert "Drift of m2can-&lt;x&gt;" in page and "what to know" in page
    for line in in_words(drift):
        assert line in page
    for title in ("Predicted classes", "Confidence", *(words.capitalize() for words in FACTS.values()), "Component 8"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert page.count("Kolmogorov-Smirnov") == len(drift.comparisons) - 1


def test_less_sure_predictions_let_expect_less() -> None:
    random = np.random.default_rng(6)
    label = random.choice(3, 500)
    right = np.where(random.random(500) < 0.9, label, (label + 1) % 3)
    sources = SourceScores(0.05 + 0.85 * np.eye(3)[right], label)

    def predicted(rest: float) -> Seen:
        """With `rest` for each of the other classes."""
        return Seen(rest + (1 - 3 * rest) * np.eye(3)[label], np.zeros((500, 64)), np.zeros((500, 5)))

    sure, unsure = predicted(0.05), predicted(0.2)
    high, low = (sources.expected_accuracy(seen) for seen in (sure, unsure))
    assert high is not None and low is not None
    assert 0.7 < high.accuracy < 1 and low.accuracy < high.accuracy - 0.2
    assert SourceScores(sources.probs_MC[:0], label[:0]).expected_accuracy(sure) is None
