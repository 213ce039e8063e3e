"""The map of fused features: before and after, by domain, by class, by prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from sklearn.neighbors import NearestNeighbors

from datasets_manifest.records.corpus import Corpus
from trainers.journal.outcome import read_validator_inputs
from trainers.loop.validator_inputs import validator_rows
from trainers.reports.charts import new_figure, svg, with_symbols
from trainers.validators.inputs import spread

MOST_POINTS = 700  # of the target and of the sources


def feature_map(corpus: Corpus, checkpoints: dict[int, Path], chosen: int) -> dict[str, Any]:
    """The earliest checkpoint that was kept and the chosen one, each by its own two principal components.

    Args:
        checkpoints: by epoch.
    """
    target, source = validator_rows(corpus, corpus.labels)
    sources, targets = spread(spread(source), MOST_POINTS), spread(spread(target), MOST_POINTS)
    # An order in which no domain lies above the others.
    order = np.random.default_rng(0).permutation(len(sources) + len(targets))
    records = corpus.table.take(np.concatenate([sources, targets])[order])
    domains = [part.domain for part in corpus.train]
    domain_N = np.array([domains.index(name) for name in records["domain"].to_pylist()], dtype=int)
    true_N = records["label"].to_numpy().astype(int)  # -1 where there is no label
    views, maps = [], []
    for epoch in dict.fromkeys((min(checkpoints), chosen)):
        seen = read_validator_inputs(checkpoints[epoch])
        features_NK = _joined(seen.source_features_MK, seen.target_features_NK)[order]
        probs_NC = _joined(seen.source_probs_MC, seen.target_probs_NC)[order]
        title = f"{'After: the chosen epoch' if epoch == chosen else 'Before: epoch'} {epoch}"
        title = title if epoch else "The floor, which was chosen"
        views.append(_drawn(title, features_NK, domain_N, true_N))
        sure = np.round(100 * probs_NC.max(1)).astype(int)
        maps.append({"predicted": probs_NC.argmax(1).tolist(), "sure": sure.tolist()})
    return {
        "sources": len(sources),
        "targets": len(targets),
        "first_epoch": min(checkpoints),
        "views": views,
        "names": {"domain": domains, "true": corpus.classes, "predicted": corpus.classes},
        "unlabelled": bool((true_N < 0).any()),
        "data": {
            "names": {"domain": domains, "class": corpus.classes},
            "id": records["id"].to_pylist(),
            "domain": domain_N.tolist(),
            "true": true_N.tolist(),
            "maps": maps,
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
    nearest = NearestNeighbors(n_neighbors=1).fit(features).kneighbors(return_distance=False)[:, 0]
    return float((group[nearest] == group).mean())


def _joined(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rows that are shown: of the sources, then of the target."""
    return np.concatenate([spread(source, MOST_POINTS), spread(target, MOST_POINTS)]).astype(float)


def _drawn(title: str, features_NK: np.ndarray, domain_N: np.ndarray, true_N: np.ndarray) -> dict[str, str | Markup]:
    """One map with its title and what its numbers say."""
    places, share = principal_components(features_NK)
    words = (
        f"Nearest neighbour among these records: of the same domain {_share(features_NK, domain_N)}, of the same class "
        f"{_share(features_NK, true_N)}. The map holds {share:.1%} of the variance."
    )
    with new_figure(6.0, 4.5) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.margins(0.03)
        axes.plot(*places.T, "o")
        picture = svg(figure, f"Map of the fused features, {title}. {words}")
    return {"title": title, "words": words, "svg": with_symbols(picture, domain_N.tolist())}


def _share(features_NK: np.ndarray, group_N: np.ndarray) -> str:
    value = same_neighbour(features_NK, group_N)
    return "not known" if np.isnan(value) else f"{value:.0%}"
