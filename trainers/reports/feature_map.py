"""The report's map of fused features: before and after, by domain, by class, by prediction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from datasets_manifest.manifest.corpus import Corpus
from trainers.loop.validator_inputs import validator_rows
from trainers.reports.charts import COLOURS, SHAPES, charts, figure, legend
from trainers.reports.page import Html, section
from trainers.validators.inputs import ValidatorInputs, spread

MOST_POINTS = 700  # of the target and of the sources
UNLABELLED = "unlabelled"
_WIDTH, _HEIGHT, _EDGE = 440, 330, 10
_WAYS = {"domain": "domain", "true": "class", "predicted": "prediction"}

STYLE = """
.map { border: 1px solid var(--line); touch-action: pan-y } .map use { opacity: .8 } .none { fill: none; stroke: var(--soft) }
fieldset { border: 1px solid var(--line); border-radius: 4px; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .8rem 0 }
fieldset label { padding: .2rem 0 } fieldset input { width: 1.1rem; height: 1.1rem; vertical-align: -.15rem }
#map [data-legend] { display: none } #map:has(input[value=domain]:checked) [data-legend=domain],
#map:has(input[value=true]:checked) [data-legend=true], #map:has(input[value=predicted]:checked) [data-legend=predicted]
{ display: flex } #point { min-height: 3em; font-size: .9rem; position: sticky; bottom: 0; padding: .4rem 0;
background: var(--page); border-top: 1px solid var(--line) } #ring { fill: none; stroke: var(--text); stroke-width: 2 }
"""

SCRIPT = """
(() => {
  const store = document.getElementById('map-data');
  if (!store) return;
  const data = JSON.parse(store.textContent), said = document.getElementById('point');
  const name = (way, i) => i < 0 ? data.unlabelled : data.names[way === 'domain' ? 'domain' : 'class'][i];
  const maps = [...document.querySelectorAll('svg.map')].map((svg, m) => {
    const uses = [...svg.querySelectorAll('use')];
    const places = uses.map(u => [+u.getAttribute('x'), +u.getAttribute('y')]);
    return {svg, uses, places, predicted: data.maps[m].predicted, sure: data.maps[m].sure};
  });
  const kind = (map, way, i) => (way === 'predicted' ? map.predicted : data[way])[i];
  const paint = way => maps.forEach(map => map.uses.forEach((use, i) => {
    const k = kind(map, way, i);
    use.setAttribute('href', k < 0 ? '#m-none' : '#m' + k);
  }));
  const show = (map, i) => {
    let ring = document.getElementById('ring');
    if (!ring) {
      ring = document.createElementNS('http://www.w3.org/2000/svg', 'circle');
      ring.id = 'ring'; ring.setAttribute('r', 8);
    }
    ring.setAttribute('cx', map.places[i][0]); ring.setAttribute('cy', map.places[i][1]);
    map.svg.append(ring); map.at = i;
    said.textContent = data.id[i] + ' · ' + name('domain', data.domain[i]) + ' · class: ' + name('true', data.true[i]) +
      ' · predicted: ' + name('predicted', map.predicted[i]) + ' (' + map.sure[i] + ' %)';
  };
  maps.forEach(map => {
    const find = event => {
      const box = map.svg.getBoundingClientRect(), scale = map.svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = -1, least = 14 * 14;
      map.places.forEach(([a, b], i) => {
        const d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least) { least = d; best = i; }
      });
      if (best >= 0) show(map, best);
    };
    map.svg.addEventListener('pointermove', find);
    map.svg.addEventListener('pointerdown', find);
    map.svg.addEventListener('keydown', event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const count = map.places.length;
      show(map, ((map.at ?? (step > 0 ? -1 : 0)) + step + count) % count);
    });
  });
  document.querySelectorAll('input[name=by]').forEach(input => input.addEventListener('change', () => paint(input.value)));
  paint(document.querySelector('input[name=by]:checked').value);
})();
"""


@dataclass(frozen=True)
class Points:
    """What the map shows, a row a sample. true_N: -1 where there is no label."""

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


def map_section(corpus: Corpus, checkpoints: dict[int, Path], chosen: int) -> Html:
    """The section: the earliest checkpoint that was kept and the chosen one, each by its own two principal components.

    Args:
        checkpoints: by epoch.
    """
    sources, targets = (rows[_some(len(rows))] for rows in _seen_rows(corpus))
    points = _points(corpus, sources, targets)
    views = [_view(epoch, checkpoints[epoch]) for epoch in dict.fromkeys((min(checkpoints), chosen))]
    intro = (
        f"Each point is a sample: {len(sources):,} labelled validation samples of the sources and {len(targets):,} training "
        "samples of the target, by the two principal components of the fused features (each map has its own). Where "
        "adaptation works, domains mix and classes part. Point at a sample to read it; with the keyboard, go to a map and "
        "press the arrow keys."
    )
    if len(views) == 1:
        intro += " There is one map only: no earlier checkpoint than the chosen one was kept."
    elif min(checkpoints) > 1:
        intro += f" No checkpoint of an epoch before {min(checkpoints)} was kept, so that is what stands for before."
    ways = "".join(
        f'<label><input type="radio" name="by" value="{way}"{" checked" if way == "domain" else ""}> {word}</label>'
        for way, word in _WAYS.items()
    )
    names = {"domain": points.domains, "true": corpus.classes, "predicted": corpus.classes}
    keys = "".join(_legend(way, names[way], way == "true" and bool((points.true_N < 0).any())) for way in _WAYS)
    drawn = [_draw(view, points, corpus.classes, chosen) for view in views]
    return section(
        "map",
        "Map of the features",
        intro,
        Html(f"<fieldset><legend>Colour and shape by</legend>{ways}</fieldset>{keys}{_symbols(points, corpus)}"),
        charts(drawn),
        Html('<p id="point" role="status" aria-live="polite" class="soft">No sample is pointed at.</p>'),
        _data(points, views, corpus.classes),
    )


def principal_components(features_NK: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates along the first two principal components [N, 2], and the share of the variance they hold."""
    centred = features_NK - features_NK.mean(0)
    left, size, right = np.linalg.svd(centred, full_matrices=False)
    left, size, right = left[:, :2], size, right[:2]
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


def _seen_rows(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    target, sources = validator_rows(corpus, corpus.labels)
    return spread(sources), spread(target)


def _some(number: int) -> np.ndarray:
    return spread(np.arange(number), MOST_POINTS)


def _mixed(number: int) -> np.ndarray:
    """An order in which no domain lies above the others."""
    return np.random.default_rng(0).permutation(number)


def _points(corpus: Corpus, sources: np.ndarray, targets: np.ndarray) -> Points:
    rows = np.concatenate([sources, targets])
    rows = rows[_mixed(len(rows))]
    domains = [part.domain for part in corpus.train]
    taken = corpus.table.take(rows)
    place = {name: i for i, name in enumerate(domains)}
    domain = np.array([place[name] for name in taken["domain"].to_pylist()], dtype=int)
    return Points(taken["id"].to_pylist(), domain, taken["label"].to_numpy().astype(int), domains)


def _view(epoch: int, checkpoint: Path) -> View:
    seen = ValidatorInputs.from_arrays(load_file(checkpoint / "evaluation.safetensors"))
    some_sources, some_targets = _some(len(seen.source_probs_MC)), _some(len(seen.target_probs_NC))

    def both(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        rows = np.concatenate([source[some_sources], target[some_targets]]).astype(float)
        return rows[_mixed(len(rows))]

    return View(
        epoch,
        both(seen.source_features_MK, seen.target_features_NK),
        both(seen.source_probs_MC, seen.target_probs_NC),
    )


def _draw(view: View, points: Points, classes: list[str], chosen: int) -> str:
    places, share = principal_components(view.features_NK)
    low, size = places.min(0), np.ptp(places, axis=0)
    unit = (places - low) / np.where(size > 0, size, 1)
    x = _EDGE + unit[:, 0] * (_WIDTH - 2 * _EDGE)
    y = _HEIGHT - _EDGE - unit[:, 1] * (_HEIGHT - 2 * _EDGE)
    uses = "".join(
        f'<use href="#m{kind}" x="{a:.1f}" y="{b:.1f}"/>'
        for kind, a, b in zip(points.domain_N.tolist(), x, y, strict=True)
    )
    when = "after: the chosen epoch" if view.epoch == chosen else "before: epoch"
    title = f"{when} {view.epoch}"
    words = (
        f"Nearest neighbour among these samples: of the same domain {_share(view, points.domain_N)}, of the same class "
        f"{_share(view, points.true_N)}. The map holds {share:.1%} of the variance."
    )
    picture = (
        f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="application" tabindex="0" '
        f'aria-label="Map of the fused features, {title}. {words}" aria-describedby="point">{uses}</svg>'
    )
    return figure(title[0].upper() + title[1:], f"{picture}<p class='soft'>{words}</p>")


def _share(view: View, group: np.ndarray) -> str:
    value = same_neighbour(view.features_NK, group)
    return "not known" if np.isnan(value) else f"{value:.0%}"


def _shape(kind: int) -> int:
    """Beyond the colours' number a kind has another shape with the same colour."""
    return (kind + kind // len(COLOURS)) % len(SHAPES)


def _legend(way: str, names: list[str], some_unlabelled: bool) -> Html:
    shown = {name: (i, _shape(i)) for i, name in enumerate(names)}
    extra = f"<li>○ {UNLABELLED}</li>" if some_unlabelled else ""
    return Html(legend(shown, of=way).replace("</ul>", f"{extra}</ul>"))


def _symbols(points: Points, corpus: Corpus) -> Html:
    kinds = range(max(len(points.domains), len(corpus.classes)))
    marks = "".join(f'<path id="m{k}" class="mark k{k % len(COLOURS)}" d="{SHAPES[_shape(k)]}"/>' for k in kinds)
    none = f'<path id="m-none" class="none" d="{SHAPES[0]}"/>'
    return Html(
        f'<svg width="0" height="0" style="position:absolute;width:0" aria-hidden="true"><defs>{marks}{none}</defs></svg>'
    )


def _data(points: Points, views: list[View], classes: list[str]) -> Html:
    content = {
        "names": {"domain": points.domains, "class": classes},
        "unlabelled": UNLABELLED,
        "id": points.ids,
        "domain": points.domain_N.tolist(),
        "true": points.true_N.tolist(),
        "maps": [
            {"predicted": v.probs_NC.argmax(1).tolist(), "sure": np.round(100 * v.probs_NC.max(1)).astype(int).tolist()}
            for v in views
        ],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="map-data">{text}</script>')
