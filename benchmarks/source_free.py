"""Adapting without the sources against training with them, on cached features of frozen encoders.

    python -m benchmarks.source_free --cache FOLDER [--out FILE]

Every domain of four development data sets is the target in turn, with its own classes and with resampled ones. What is
adapted never saw the target: a network trained on the sources alone, and a floor of the sources that is standardised by one of
them. Judged on the target's validation records. Runs that --out holds already are not repeated.
"""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cached import CachedFeatures, CachedLoop, cached_loop
from benchmarks.expected import DATA, features_of, with_target
from benchmarks.labels import floor_of, views
from benchmarks.loops import KeptRuns, cases_parser
from benchmarks.variants import COMMON, SOURCES
from services.adaptation import adapted_network, harm_of, standardised
from trainers.m2can.encoders.given_features import GivenFeatures
from trainers.m2can.floor import Floor, FloorHead, FloorNetwork, Network, fit_floor
from trainers.m2can.source_free import predicted
from trainers.recipe import apply_override, make_recipe
from trainers.validators import ValidatorInputs, choose_candidate
from trainers.validators.expected import expected_accuracy
from trainers.validators.structure import neighbour_consistency

SHIFTS = (0.0, 0.5)  # of Dirichlet's distribution of the target's class shares; 0: as they are
MODELS = ("network", "floor")


def loop_of(features: CachedFeatures, preset: str, overrides: list[str]) -> CachedLoop:
    """A loop whose target is the corpus's last domain."""
    tree: dict[str, Any] = {"preset": preset, "data": features.card.recipe.data.model_dump(mode="json")}
    place = {Path(path).parent.name: path for path in [*tree["data"]["sources"], tree["data"]["target"]]}
    *sources, last = (place[part.domain] for part in features.corpus.train)
    tree["data"] |= {"sources": sources, "target": last}
    for override in [*COMMON, *overrides, "train.seed=0"]:
        apply_override(tree, override)
    return cached_loop(features, make_recipe(tree))


def trained(features: CachedFeatures, preset: str, overrides: list[str]) -> tuple[Network, float, ValidatorInputs]:
    """The network of the chosen epoch, its target validation accuracy, and its predictions."""
    loop = loop_of(features, preset, overrides)
    evidence, accuracy, weights = [], [], []
    while not loop.is_over:
        metrics, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        accuracy.append(metrics["target/val/accuracy"])
        weights.append(copy.deepcopy(loop.network.state_dict()))
    selection = loop.recipe.selection
    chosen = choose_candidate(selection.validator, evidence, selection.gate)
    loop.network.load_state_dict(weights[chosen])
    return loop.network.eval(), accuracy[chosen], evidence[chosen]


def floor_of_sources(features: CachedFeatures) -> FloorNetwork:
    """A floor whose target was the first source."""
    corpus = features.corpus
    sources = [
        (views(features, part.rows), torch.from_numpy(corpus.labels[part.rows]).long()) for part in corpus.train[:-1]
    ]
    return network_of(features, fit_floor(sources, sources[0][0], len(corpus.classes)))


def network_of(features: CachedFeatures, floor: Floor) -> FloorNetwork:
    text, picture = (GivenFeatures(x.shape[-1]) for x in (features.text_VNK, features.picture_VNK))
    head = FloorHead((text.width, picture.width), len(features.corpus.classes))
    head.take(floor)
    return FloorNetwork(text, picture, head).eval()


@torch.no_grad()
def labels_by(network: Network, text_NK: Tensor, picture_NK: Tensor) -> np.ndarray:
    found: np.ndarray = predicted(network, text_NK, picture_NK).fused_logits_DBC[0].argmax(1).numpy()
    return found


def run_one(data: str, target: int, shift: float, cache: Path) -> list[dict[str, Any]]:
    features = with_target(features_of(data, cache), target, shift, seed=0)
    corpus = features.corpus
    rows = corpus.val[-1].rows  # type: ignore[union-attr]

    def accuracy(network: Network) -> float:
        return round(float((labels_by(network, *judged) == corpus.labels[rows]).mean()), 4)

    found = []
    for model in MODELS:
        start: Network
        of_model = features if model == "network" else features.for_floor()
        seen, judged = (tuple(views(of_model, part).values()) for part in (corpus.train[-1].rows, rows))
        if model == "network":
            start, _, seen_by_validators = trained(features, "published", SOURCES)
            expected = expected_accuracy(seen_by_validators)
            with_sources = round(trained(features, "recommended", [])[1], 4)
        else:
            start, expected = floor_of_sources(of_model), None
            with_sources = accuracy(network_of(of_model, floor_of(of_model, None)))
        adapted = adapted_network(start, *seen, seed=0)
        space = standardised(*seen)
        first, last = (labels_by(one, *seen) for one in (start, adapted))
        before, after = (neighbour_consistency(each, space) for each in (first, last))
        found.append({"data": data, "target": target, "shift": shift, "model": model, "as_it_is": accuracy(start)})
        found[-1] |= {"adapted": accuracy(adapted), "with_sources": with_sources}
        found[-1] |= {
            "consistency": [round(before, 4), round(after, 4)],
            "harm": harm_of(adapted, first, last, before, after, expected) is not None,
        }
        print(*found[-1].values(), flush=True)
    return found


def table(content: dict[str, Any]) -> str:
    """Markdown."""
    runs = content["runs"]
    data = list(dict.fromkeys(run["data"] for run in runs))

    def mean(key: str, part: list[dict[str, Any]]) -> float:
        values = [run["as_it_is" if run["harm"] else "adapted"] if key == "used" else run[key] for run in part]
        return 100 * float(np.mean(values))

    lines = [
        "Target validation accuracy in percent, mean over three targets a data set. The models never saw the target: a network "
        "trained on the sources alone, a floor standardised by a source. `m2can adapt` adapts them with the target's records and "
        "no source; *kept or adapted* is what the command gives, which keeps the model where neighbours disagree more often or "
        "little is to be gained. "
        "With sources: `recommended`, and the floor, of the same sources and that target. Resampled: class shares from "
        "Dirichlet's distribution of 0.5. `python -m benchmarks.source_free --cache FOLDER --out "
        "benchmarks/results/source_free.json`\n",
        f"| model | target's classes | what | {' | '.join(data)} | mean |",
        "|---|---|---|" + "---|" * (len(data) + 1),
    ]
    names = {"as_it_is": "as it is", "adapted": "adapted", "used": "kept or adapted", "with_sources": "with sources"}
    for model, shift, key in product(MODELS, SHIFTS, names):
        parts = [[r for r in runs if (r["model"], r["shift"], r["data"]) == (model, shift, one)] for one in data]
        cells = [mean(key, part) for part in parts]
        shown = " | ".join(f"{cell:.1f}" for cell in [*cells, float(np.mean(cells))])
        lines.append(f"| {model} | {'resampled' if shift else 'own'} | {names[key]} | {shown} |")
    for model in MODELS:
        of_model = [run for run in runs if run["model"] == model]
        together = {
            key: np.mean([mean(key, [run for run in of_model if run["data"] == one]) for one in data])
            for key in ("as_it_is", "used", "with_sources")
        }
        said = ", ".join(f"{names[key]} {value:.1f}" for key, value in together.items())
        lines.append(f"\n{model.capitalize()}, own and resampled classes together: {said}.")
        harmed = [run for run in of_model if run["adapted"] < run["as_it_is"] - 0.01]
        told, caught = [run for run in of_model if run["harm"]], sum(run["harm"] for run in harmed)
        lines.append(
            f"\n{model.capitalize()}: of {len(of_model)} cases {len(harmed)} lose more than a point by adapting; the command "
            f"says so in {caught} of them, and keeps the model in {len(told)} cases in all."
        )
    return "\n".join(lines)


def main() -> None:
    arguments = cases_parser(__doc__, DATA).parse_args()
    torch.set_num_threads(1)
    kept = KeptRuns(arguments.out)
    for data, target, shift in product(arguments.data, range(3), SHIFTS):
        if not kept.has(data=data, target=target, shift=shift):
            kept.add(run_one(data, target, shift, arguments.cache))
    print(table({"runs": kept.runs}))


if __name__ == "__main__":
    main()
