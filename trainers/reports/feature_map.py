"""The map of fused features: before and after, by domain, by class, by prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from datasets_manifest.manifest.corpus import Corpus
from trainers.loop.validator_inputs import validator_rows
from trainers.reports.charts import new_figure, svg, with_symbols
from trainers.tracking.outcome import read_validator_inputs
from trainers.validators.inputs import spread

MOST_POINTS = 700  # of the target and of the sources


@dataclass(frozen=True)
class Points:
    """The records of the map. true_N: -1 where there is no label."""

    ids: list[str]
    domain_N: np.ndarray
    true_N: np.ndarray
    domains: list[str]


@dataclass(frozen=True)
class View:
    """The points as one epoch's network sees them."""

    epoch: int
    features_NK: np.ndarray
    probs_NC: np.ndarray


def feature_map(corpus: Corpus, checkpoints: dict[int, Path], chosen: int) -> dict[str, Any]:
    """The earliest checkpoint that was kept and the chosen one, each by its own two principal components.

    Args:
        checkpoints: by epoch.
    """
    target, source = validator_rows(corpus, corpus.labels)
    sources, targets = (spread(rows)[_some(len(spread(rows)))] for rows in (source, target))
    points = _points(corpus, np.concatenate([sources, targets]))
    views = [_view(epoch, checkpoints[epoch]) for epoch in dict.fromkeys((min(checkpoints), chosen))]
    return {
        "sources": len(sources),
        "targets": len(targets),
        "first_epoch": min(checkpoints),
        "views": [_drawn(view, points, view.epoch == chosen) for view in views],
        "names": {"domain": points.domains, "true": corpus.classes, "predicted": corpus.classes},
        "unlabelled": bool((points.true_N < 0).any()),
        "data": {
            "names": {"domain": points.domains, "class": corpus.classes},
            "id": points.ids,
            "domain": points.domain_N.tolist(),
            "true": points.true_N.tolist(),
            "maps": [
                {
                    "predicted": view.probs_NC.argmax(1).tolist(),
                    "sure": np.round(100 * view.probs_NC.max(1)).astype(int).tolist(),
                }
                for view in views
            ],
        },
    }


def principal_components(features_NK: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates along the first two principal components [N, 2], and their share of the variance."""
    centred = features_NK - features_NK.mean(0)
    left, size, right = np.linalg.svd(centred, full_matrices=False)
    left, right = left[:, :2], right[:2]
    sign = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    total = float((size**2).sum())
    places = np.zeros((len(features_NK), 2))
    places[:, : left.shape[1]] = left * size[:2] * np.where(sign == 0, 1, sign)
    return places, float((size[:2] ** 2).sum()) / total if total else 0.0


def same_neighbour(features_NK: np.ndarray, group_N: np.ndarray) -> float:
    """Share of the rows whose nearest other row is of the same group; rows of group -1 do not take part."""
    known = group_N >= 0
    features, group = features_NK[known].astype(float), group_N[known]
    if len(group) < 2:
        return float("nan")
    squares = (features**2).sum(1)
    distance = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distance, np.inf)
    return float((group[distance.argmin(1)] == group).mean())


def _some(number: int) -> np.ndarray:
    return spread(np.arange(number), MOST_POINTS)


def _mixed(number: int) -> np.ndarray:
    """An order in which no domain lies above the others."""
    return np.random.default_rng(0).permutation(number)


def _points(corpus: Corpus, rows: np.ndarray) -> Points:
    taken = corpus.table.take(rows[_mixed(len(rows))])
    domains = [part.domain for part in corpus.train]
    domain = np.array([domains.index(name) for name in taken["domain"].to_pylist()], dtype=int)
    return Points(taken["id"].to_pylist(), domain, taken["label"].to_numpy().astype(int), domains)


def _view(epoch: int, checkpoint: Path) -> View:
    seen = read_validator_inputs(checkpoint)
    some_sources, some_targets = _some(len(seen.source_probs_MC)), _some(len(seen.target_probs_NC))

    def both(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        rows = np.concatenate([source[some_sources], target[some_targets]]).astype(float)
        return rows[_mixed(len(rows))]

    return View(
        epoch,
        both(seen.source_features_MK, seen.target_features_NK),
        both(seen.source_probs_MC, seen.target_probs_NC),
    )


def _drawn(view: View, points: Points, is_chosen: bool) -> dict[str, str | Markup]:
    """One map with its title and what its numbers say."""
    places, share = principal_components(view.features_NK)
    title = f"{'After: the chosen epoch' if is_chosen else 'Before: epoch'} {view.epoch}"
    words = (
        f"Nearest neighbour among these records: of the same domain {_share(view, points.domain_N)}, of the same class "
        f"{_share(view, points.true_N)}. The map holds {share:.1%} of the variance."
    )
    with new_figure(6.0, 4.5) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.margins(0.03)
        axes.plot(*places.T, "o")
        picture = svg(figure, f"Map of the fused features, {title}. {words}")
    return {"title": title, "words": words, "svg": with_symbols(picture, points.domain_N.tolist())}


def _share(view: View, group: np.ndarray) -> str:
    value = same_neighbour(view.features_NK, group)
    return "not known" if np.isnan(value) else f"{value:.0%}"
