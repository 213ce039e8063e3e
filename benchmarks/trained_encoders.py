"""Which preset is best where small encoders are trained, not frozen: candidates × data sets × targets × seeds.

    python -m benchmarks.trained_encoders --cache FOLDER [--seeds 0] [--data NAME …] [--candidates NAME …] [--out FILE]

`tiny` encoders with random weights; every domain is the target in turn. All candidates have the same encoders, data, rates,
batches and epochs: the rates of `published`, made for pretrained encoders, would not train random weights. The product's run has
a floor, too, on the features of the random encoders. Runs that --out holds already are not repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.choose_preset import CANDIDATES, FLOOR, KNOWN, Case, floor_accuracy, mean_of, worst
from benchmarks.loops import KeptRuns, cases_parser, one_worker
from benchmarks.small_data import DATA as SMALL_DATA
from benchmarks.small_data import recipe_tree
from trainers.loop.floor import find_floor, has_floor
from trainers.preflight.preparation import prepare
from trainers.recipe import Recipe, apply_override, make_recipe
from trainers.recipe.training_rule import RATES, decide
from trainers.validators import ValidatorInputs, choose_candidate, compare_with_floor

DATA = ("postcards-200", "shapes-300", "captions-150")
TARGETS = range(3)  # places of the domains
PRODUCT = "recommended"
NAMES = (*(name for name in KNOWN if name in CANDIDATES), PRODUCT)  # the floors of KNOWN are not trained
# What the training rule decides for the product, and all candidates share.
SHARED = ("train.epochs", "train.batch_size", *(f"optimizer.lr.{part}" for part in RATES["random encoders"]))


@lru_cache(maxsize=1)
def manifests_of(data: str, cache: Path) -> list[Path]:
    write, train = SMALL_DATA[data]
    return write(cache / data, train)


def recipe_of(data: str, target: int, candidate: str, seed: int, cache: Path, extra: Sequence[str] = ()) -> Recipe:
    """The candidate's method on the product's data and encoders.

    Args:
        extra: overrides on top of everything.
    """
    preset, overrides, experiments = CANDIDATES[candidate]
    assert not experiments
    manifests, (_, rows) = manifests_of(data, cache), SMALL_DATA[data]
    ordered = [path for place, path in enumerate(manifests) if place != target] + [manifests[target]]
    product, _ = decide(make_recipe(recipe_tree(ordered, "tiny", cache)), rows)
    common, flat = product.model_dump(mode="json"), product.flat()
    tree: dict[str, Any] = {"preset": preset, **{section: common[section] for section in ("data", "encoders", "run")}}
    shared = [f"{key}={flat[key]}" for key in SHARED]
    for override in [*shared, *overrides, f"train.seed={seed}", *extra]:
        apply_override(tree, override)
    return make_recipe(tree)


def run_one(
    data: str, target: int, seed: int, candidate: str, cache: Path, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy on all target records after every epoch, which epoch was chosen, and the floor where the candidate has one."""
    loop = one_worker(prepare(recipe_of(data, target, candidate, seed, cache, extra)))
    floor = find_floor(loop) if has_floor(loop.recipe) else None
    of_target = [part for part in (loop.corpus.train[-1], loop.corpus.val[-1]) if part is not None]
    evidence, accuracies = [], []
    while not loop.is_over:
        _, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        right = [scored.of(part)["label"] == loop.corpus.labels[part.rows] for part in of_target]
        accuracies.append(round(float(np.concatenate(right).mean()), 4))
    selection = loop.recipe.selection
    chosen = choose_candidate(selection.validator, evidence, selection.gate)
    found = {"data": data, "target": target, "seed": seed, "candidate": candidate, "chosen": chosen, "all": accuracies}
    if floor is None:
        return found
    of_floor = ValidatorInputs.from_arrays({name: x.numpy() for name, x in floor.evaluation.items()})
    compared = compare_with_floor(selection.validator, of_floor, evidence[chosen], selection.gate)
    return found | {
        "floor_all": floor_accuracy(floor, loop.corpus.target),
        "prefers_floor": compared.prefers_floor,
    }


def by_candidate(runs: list[dict[str, Any]]) -> dict[str, dict[Case, dict[str, float]]]:
    """Accuracy of the chosen epoch and of the best one, by candidate and case; the floor is a candidate of one epoch."""
    found: dict[str, dict[Case, dict[str, float]]] = {}
    for run in runs:
        case = (run["data"], "own", run["target"], run["seed"])
        values = {"chosen": run["all"][run["chosen"]], "best": max(run["all"])}
        found.setdefault(run["candidate"], {})[case] = values
        if "floor_all" in run:
            found.setdefault(FLOOR, {})[case] = dict.fromkeys(("chosen", "best"), run["floor_all"])
    return found


def table(content: dict[str, Any]) -> str:
    """Markdown, in percent and points."""
    runs = content["runs"]
    found = by_candidate(runs)
    cases = {case[:3] for case in found[NAMES[0]]}
    sets = [data for data in DATA if any(case[0] == data for case in cases)]
    names = [name for name in (*NAMES, FLOOR) if {case[:3] for case in found.get(name, {})} == cases]
    floors = [run for run in runs if "floor_all" in run]
    preferred = [run for run in floors if run["prefers_floor"]]
    lines = [
        f"`tiny` encoders that start at random and are trained, on {len(sets)} generated data sets (the number in a name is the "
        "training records of a domain): target accuracy in percent of the epoch that is chosen without target labels, on all "
        "records of the target, mean over every domain as the target and over the seeds in brackets. All candidates have the "
        "same encoders, data, epochs, batches and rates, those of the training rule for random encoders: the row of `published` "
        "is its method, not its rates, which are for pretrained encoders. "
        "*Regret*: the best epoch, less the chosen one. *Worst*: the smallest difference to source-only training over the "
        "cases, each the mean of its seeds. "
        "`python -m benchmarks.trained_encoders --cache FOLDER --out benchmarks/results/trained_encoders.json`\n",
        f"| candidate | {' | '.join(sets)} | mean | regret | worst |",
        "|---|" + "---|" * (len(sets) + 3),
    ]
    for name in names:
        values = found[name]
        cells = [f"{mean_of(values, 'chosen', data=data):.1f}" for data in sets]
        mean = mean_of(values, "chosen")
        regret = mean_of(values, "best") - mean
        against = worst(values, found[NAMES[0]], "chosen")
        shown = f"{name} on the random encoders' features" if name == FLOOR else name
        cells += [f"**{mean:.1f}**", f"{regret:.1f}", f"{against:+.1f}"]
        lines.append(f"| {shown} ({_seeds(values)}) | {' | '.join(cells)} |")
    lines += ["", f"The product preferred the floor in {len(preferred)} of {len(floors)} runs{_cost(preferred)}."]
    return "\n".join(lines)


def _seeds(values: dict[Case, dict[str, float]]) -> str:
    """How many a case has."""
    counts = sorted(set(Counter(case[:3] for case in values).values()))
    return "–".join(map(str, counts))


def _cost(preferred: list[dict[str, Any]]) -> str:
    if not preferred:
        return ""
    gains = [100 * (run["floor_all"] - run["all"][run["chosen"]]) for run in preferred]
    return f", which changed the accuracy there by {np.mean(gains):+.1f} points on average"


def main() -> None:
    parser = cases_parser(__doc__, DATA)
    parser.add_argument("--candidates", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = KeptRuns(arguments.out)
    for seed, data, target, candidate in product(arguments.seeds, arguments.data, TARGETS, arguments.candidates):
        case = {"data": data, "target": target, "seed": seed, "candidate": candidate}
        if kept.has(**case):
            continue
        found = run_one(cache=arguments.cache, **case)
        kept.add([found])
        print(*case.values(), f"chosen {found['all'][found['chosen']]} best {max(found['all'])}", flush=True)
    print(table({"runs": kept.runs}))


if __name__ == "__main__":
    main()
