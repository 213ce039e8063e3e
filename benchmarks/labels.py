"""What a few labels of the target bring, suggested ones against random ones, on cached features of frozen encoders.

    python -m benchmarks.labels --cache FOLDER [--networks] [--out FILE]

Every domain of four development data sets is the target in turn. The floor suggests; the floor and, with --networks,
`recommended` train with the labels. Judged on the target's validation records. Runs that --out holds already are not
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cached import CachedFeatures, cached_loop
from benchmarks.expected import DATA, features_of, with_target
from benchmarks.loops import KeptRuns, cases_parser
from benchmarks.variants import COMMON
from datasets_manifest.records.target_labels import TargetLabels
from services.labelling.suggest import most_worth, worth
from trainers.m2can.floor import Features, Floor, estimate_shares, fit_floor
from trainers.recipe import apply_override, make_recipe
from trainers.validators import choose_candidate

A_CLASS = (0, 1, 3, 10, 30)
KINDS = ("suggested", "random")
KEYS = ("data", "target", "model", "a_class", "kind", "seed")  # of a run
DRAWS = 3  # of random labels for the floor; networks have one
TARGETS = 3  # of a data set
OF_NETWORKS = (0, 3, 10)  # labels a class


def views(features: CachedFeatures, rows: np.ndarray) -> Features:
    """Of the weak views, by modality."""
    at = torch.from_numpy(rows)
    return {"text": features.text_VNK[0][at], "picture": features.picture_VNK[0][at]}


def floor_of(features: CachedFeatures, given: TargetLabels | None) -> Floor:
    corpus, target = features.corpus, features.corpus.train[-1]
    sources = [
        (views(features, part.rows), torch.from_numpy(corpus.labels[part.rows]).long()) for part in corpus.train[:-1]
    ]
    labelled = None
    if given is not None:
        labelled = torch.from_numpy(given.rows - target.start), torch.from_numpy(given.labels)
    seen, classes = views(features, target.rows), len(corpus.classes)
    return fit_floor(sources, seen, classes, prior=estimate_shares(sources, seen, classes), labelled=labelled)


def suggested(features: CachedFeatures, floor: Floor, number: int) -> np.ndarray:
    """Places among the target's training records, as `m2can data suggest` chooses them."""
    target = views(features, features.corpus.train[-1].rows)
    parts = floor.standardised(target)
    of_modality = [(x @ floor.weight[name].T + floor.bias).softmax(1).numpy() for name, x in parts.items()]
    has_both = np.all([x.abs().sum(1).numpy() > 0 for x in target.values()], axis=0)
    probs = floor.logits(target).softmax(1).numpy()
    return most_worth(worth(probs, np.stack(of_modality), has_both), floor.projected(target).numpy(), number)


def labels_of(features: CachedFeatures, floor: Floor, kind: str, a_class: int, seed: int) -> TargetLabels | None:
    """As many labels a class on average; None: none."""
    target, labels = features.corpus.train[-1], features.corpus.labels
    number = min(a_class * len(features.corpus.classes), len(target))
    if not number:
        return None
    if kind == "random":
        places = np.random.default_rng(seed).permutation(len(target))[:number]
    else:
        places = suggested(features, floor, number)
    rows = np.sort(places) + target.start
    nothing = np.empty(0, np.int64)
    return TargetLabels(rows, labels[rows], nothing, nothing)


def floor_accuracy(features: CachedFeatures, floor: Floor) -> float:
    rows = features.corpus.val[-1].rows  # type: ignore[union-attr]
    return float((floor.logits(views(features, rows)).argmax(1).numpy() == features.corpus.labels[rows]).mean())


def network_accuracy(features: CachedFeatures, given: TargetLabels | None, seed: int) -> float:
    """Of the epoch of `recommended` that is chosen without target labels."""
    features = replace(features, corpus=replace(features.corpus, given=given))
    tree: dict[str, Any] = {"data": features.card.recipe.data.model_dump(mode="json")}
    place = {Path(path).parent.name: path for path in [*tree["data"]["sources"], tree["data"]["target"]]}
    *sources, last = (place[part.domain] for part in features.corpus.train)
    tree["data"] |= {"sources": sources, "target": last}
    for override in [*COMMON, f"train.seed={seed}", *(["train.target_labels=few"] if given is not None else [])]:
        apply_override(tree, override)
    loop = cached_loop(features, make_recipe(tree))
    evidence, accuracy = [], []
    while not loop.is_over:
        metrics, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        accuracy.append(metrics["target/val/accuracy"])
    selection = loop.recipe.selection
    return accuracy[choose_candidate(selection.validator, evidence, selection.gate)]


def runs_of(data: str, target: int, cache: Path, networks: bool, kept: KeptRuns) -> list[dict[str, Any]]:
    features = with_target(features_of(data, cache), target, 0.0, seed=0)
    whole = features.for_floor()
    base = floor_of(whole, None)
    rows = []
    model = "network" if networks else "floor"
    for a_class in OF_NETWORKS if networks else A_CLASS:
        kinds = KINDS if a_class else KINDS[1:]
        for kind, seed in product(kinds, range(DRAWS if kinds == KINDS and not networks else 1)):
            key = dict(zip(KEYS, (data, target, model, a_class, kind, seed), strict=True))
            if kept.has(**key) or (kind == "suggested" and seed > 0):
                continue
            given = labels_of(whole, base, kind, a_class, seed)
            found = (
                network_accuracy(features, given, seed) if networks else floor_accuracy(whole, floor_of(whole, given))
            )
            rows.append(key | {"accuracy": round(found, 4)})
            print(*rows[-1].values(), flush=True)
    return rows


def mean_of(runs: Sequence[dict[str, Any]], **wanted: Any) -> tuple[float, int] | None:
    """Mean accuracy in percent over draws, then targets, and the number of targets; None without a run."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if all(run[key] == value for key, value in wanted.items()):
            found.setdefault(run["target"], []).append(run["accuracy"])
    return (100 * float(np.mean([np.mean(each) for each in found.values()])), len(found)) if found else None


def shown(cell: tuple[float, int] | None) -> str:
    """With the number of targets where those are not all three."""
    if cell is None:
        return "–"
    return f"{cell[0]:.1f}" if cell[1] == TARGETS else f"{cell[0]:.1f} ({cell[1]})"


def table(content: dict[str, Any]) -> str:
    """Markdown."""
    runs = content["runs"]
    data = list(dict.fromkeys(run["data"] for run in runs))
    models = {"floor": "the floor", "network": "`recommended`"}
    lines = [
        "Target validation accuracy in percent with so many labels a class that are trained on (those held out come on top), "
        "mean over three targets a data set, or over as many as stand in brackets; `suggested`: as `m2can data suggest` chooses "
        f"them by the floor, `random`: drawn by chance (floor: mean of {DRAWS} draws). Frozen encoders' features. `python -m "
        "benchmarks.labels --cache FOLDER [--networks] --out benchmarks/results/labels.json`\n",
        f"| trained | labels a class | {' | '.join(data)} | mean |",
        "|---|---|" + "---|" * (len(data) + 1),
    ]
    ahead = []
    for model, a_class in product(models, A_CLASS):
        means = {}
        for kind in KINDS if a_class else ("random",):
            cells = [mean_of(runs, data=one, model=model, a_class=a_class, kind=kind) for one in data]
            known = [cell[0] for cell in cells if cell is not None]
            if not known:
                continue
            means[kind] = float(np.mean(known))
            number = f"{a_class} {kind}" if a_class else "0"
            lines.append(f"| {models[model]} | {number} | {' | '.join(map(shown, cells))} | {means[kind]:.1f} |")
        if len(means) == len(KINDS):
            ahead.append(f"{models[model]} at {a_class}: {means['suggested'] - means['random']:+.1f}")
    lines.append(f"\nSuggested less random, points: {', '.join(ahead)}.")
    return "\n".join(lines)


def main() -> None:
    parser = cases_parser(__doc__, DATA)
    parser.add_argument("--networks", action="store_true", help="train `recommended`, not the floor: minutes a target")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = KeptRuns(arguments.out)
    for data, target in product(arguments.data, range(3)):
        kept.add(runs_of(data, target, arguments.cache, arguments.networks, kept))
    print(table({"runs": kept.runs}))


if __name__ == "__main__":
    main()
