"""Which preset is best on data that did not choose it: candidates × development data sets × variants × targets × seeds.

    python -m benchmarks.choose_preset --cache FOLDER [--seeds 1] [--data NAME …] [--cases N …] [--candidates NAME …] [--out FILE]

On cached features of frozen encoders. Variants of a data set: its own classes, the target's classes resampled, pictures missing
in a part of all rows. What a run gives is what the product gives: the epoch that the validator chooses, or the floor where it
prefers that. Runs that --out holds already are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.cached import CachedFeatures, cache_features, cached_loop, floor_found
from benchmarks.emoji import EDGE, WRITERS
from benchmarks.expected import features_of as features_of_four
from benchmarks.expected import with_target
from benchmarks.loops import KeptRuns, cases_parser
from benchmarks.variants import COMMON, SOURCES
from experiments.catalog import applied
from trainers.loop.floor import FoundFloor
from trainers.recipe import Recipe, apply_override, make_recipe
from trainers.validators import ValidatorInputs, choose_candidate, compare_with_floor

DATA = ("postcards", "captions", "shapes", "icons", *WRITERS)
# Every domain is the target with its own classes; one domain each with what is changed.
CASES = (("own", 0), ("own", 1), ("own", 2), ("dirichlet-1", 0), ("dirichlet-0.5", 1), ("missing", 2))
WITHOUT_PICTURES = 0.3  # of the rows of `missing`


def decay(weight: float) -> list[str]:
    return ["optimizer.type=adamw", f"optimizer.weight_decay={weight}"]


# Preset, overrides, experiments. KNOWN_SHARES: the recipe states the target's class shares.
KNOWN_SHARES = "uacr.prior"
EQUAL = ["uacr.prior=uniform"]
CANDIDATES: dict[str, tuple[str, list[str], list[str]]] = {
    "source-only": ("published", SOURCES, []),
    "MCC": ("published", [*SOURCES, "objective.mcc=1"], []),
    "published": ("published", [], []),
    "recommended": ("recommended", [], []),
    "equal shares": ("recommended", EQUAL, []),
    "labels from the floor": ("recommended", [*EQUAL, "uacr.warmup=0", "uacr.update=0.1"], []),
    "labels from the floor, MCC 1": (
        "recommended",
        [*EQUAL, "uacr.warmup=0", "uacr.update=0.1", "objective.mcc=1"],
        [],
    ),
    "shares stated": ("recommended", [KNOWN_SHARES], []),
    "shares stated, without the floor": ("recommended", [KNOWN_SHARES, "uacr.warmup=3"], []),
    "equal shares, decay 3": ("recommended", [*EQUAL, *decay(3)], []),
    "floor at first": ("recommended", [*EQUAL, "uacr.warmup=3"], ["floor-labels-at-first"]),
    "soft labels, decay 3": (
        "recommended",
        [*EQUAL, "uacr.warmup=1", "uacr.update=0.1", *decay(3)],
        ["floor-labels-soft"],
    ),
}


@lru_cache(maxsize=1)
def features_of(data: str, cache: Path) -> CachedFeatures:
    """The features of a data set."""
    if data in WRITERS:
        folder = cache / f"expected-{data}"
        return cache_features(WRITERS[data](folder, cache), cache / f"{folder.name}-features", EDGE)
    return features_of_four(data, cache)


def variant_of(features: CachedFeatures, target: int, variant: str, seed: int) -> CachedFeatures:
    """With another domain as the target, and what the variant changes."""
    shift = float(variant.removeprefix("dirichlet-")) if variant.startswith("dirichlet") else 0.0
    found = with_target(features, target, shift, seed)
    if variant == "missing":
        draw = np.random.default_rng(seed)
        gone_N = torch.from_numpy(draw.random(found.picture_VNK.shape[1]) < WITHOUT_PICTURES)
        picture, whole = found.picture_VNK.masked_fill(gone_N[None, :, None], 0.0), found.whole_NK
        found = replace(
            found, picture_VNK=picture, whole_NK=None if whole is None else whole.masked_fill(gone_N[:, None], 0.0)
        )
    return found


def prior_of(candidate: str) -> str:
    """The override that says what its floor knows of the classes' shares."""
    preset, overrides, _ = CANDIDATES[candidate]
    stated = [key for key in overrides if key.startswith(KNOWN_SHARES)]
    return next(iter(stated), "uacr.prior=auto" if preset == "recommended" else EQUAL[0])


@lru_cache(maxsize=1)
def case_of(
    data: str, variant: str, target: int, seed: int, prior: str, cache: Path
) -> tuple[CachedFeatures, FoundFloor]:
    """The features of a case and the floor.

    Args:
        prior: an override: what the floor knows of the classes' shares.
    """
    features = variant_of(features_of(data, cache), target, variant, seed)
    return features, floor_found(features, recipe_of(features, "recommended", ["uacr.warmup=1", prior], seed))


def shares_of(features: CachedFeatures) -> list[float]:
    """Of the target's classes, each counted once more."""
    corpus = features.corpus
    counts_C = 1 + np.bincount(corpus.labels[corpus.train[-1].rows], minlength=len(corpus.classes))
    return [round(float(share), 4) for share in counts_C / counts_C.sum()]


def recipe_of(features: CachedFeatures, preset: str, overrides: list[str], seed: int) -> Recipe:
    stored = features.card.recipe.model_dump(mode="json")
    tree: dict[str, Any] = {"preset": preset, "data": stored["data"], "encoders": stored["encoders"]}
    place = {Path(path).parent.name: path for path in [*tree["data"]["sources"], tree["data"]["target"]]}
    *sources, last = (place[part.domain] for part in features.corpus.train)
    tree["data"] |= {"sources": sources, "target": last}
    for override in [*COMMON, *overrides, f"train.seed={seed}"]:
        apply_override(tree, f"{KNOWN_SHARES}={shares_of(features)}" if override == KNOWN_SHARES else override)
    return make_recipe(tree)


def run_one(data: str, variant: str, target: int, seed: int, candidate: str, cache: Path) -> dict[str, Any]:
    """Target validation accuracy of every epoch and of the floor, and which of them was chosen."""
    preset, overrides, experiments = CANDIDATES[candidate]
    features, floor = case_of(data, variant, target, seed, prior_of(candidate), cache)
    with applied(*experiments), patch("experiments.floor_labels.find_floor", lambda _: floor):
        loop = cached_loop(features, recipe_of(features, preset, overrides, seed), floor)
        evidence, epochs, everywhere = [], [], []
        while not loop.is_over:
            metrics, scored = loop.run_epoch()
            evidence.append(scored.validator_inputs)
            epochs.append(metrics)
            of_target = [part for part in (loop.corpus.train[-1], loop.corpus.val[-1]) if part is not None]
            right = [scored.of(part)["label"] == loop.corpus.labels[part.rows] for part in of_target]
            everywhere.append(round(float(np.concatenate(right).mean()), 4))
    selection = loop.recipe.selection
    chosen = choose_candidate(selection.validator, evidence, selection.gate)
    of_floor = ValidatorInputs.from_arrays({name: x.numpy() for name, x in floor.evaluation.items()})
    compared = compare_with_floor(selection.validator, of_floor, evidence[chosen], selection.gate)
    return {
        "data": data,
        "variant": variant,
        "target": target,
        "seed": seed,
        "candidate": candidate,
        "chosen": chosen,
        "floor": round(floor.metrics["target/val/accuracy"], 4),
        "prefers_floor": compared.prefers_floor,
        "epochs": [round(metrics["target/val/accuracy"], 4) for metrics in epochs],
        "all": everywhere,
        "floor_all": floor_accuracy(floor, features.corpus.target),
        "shares_error": shares_error(features, loop.pseudo_labels.prior()),
    }


def shares_error(features: CachedFeatures, prior_C: np.ndarray) -> float:
    """Of the class shares that the pseudo labels follow: sum of absolute differences to the target's own, 0 to 2."""
    corpus = features.corpus
    counts_C = np.bincount(corpus.labels[corpus.train[-1].rows], minlength=len(corpus.classes))
    return round(float(np.abs(prior_C - counts_C / counts_C.sum()).sum()), 4)


def floor_accuracy(floor: FoundFloor, target: str) -> float:
    """On all records of the target."""
    columns = [
        torch.cat([floor.evaluation[f"{target}/{split}/{name}"] for split in ("train", "val")])
        for name in ("label", "true")
    ]
    return round(float((columns[0] == columns[1]).double().mean()), 4)


FLOOR, ESTIMATED_FLOOR = "floor", "floor, shares estimated"
# What a new preset has to beat; the preset that this table led to is judged against them.
KNOWN = ("source-only", FLOOR, ESTIMATED_FLOOR, "MCC", "published")
Case = tuple[str, str, int, int]  # data, variant, target, seed


def with_floor(runs: Sequence[dict[str, Any]]) -> dict[str, dict[Case, dict[str, float]]]:
    """By candidate and case, the floor among the candidates: accuracy of the chosen epoch, of what the product gives (the floor
    where it is preferred; `published` has none), and the best of all epochs and the floor."""
    found: dict[str, dict[Case, dict[str, float]]] = {}
    for run in runs:
        case = (run["data"], run["variant"], run["target"], run["seed"])
        name, floor, chosen = run["candidate"], run["floor_all"], run["all"][run["chosen"]]
        has_floor = CANDIDATES[name][0] != "published"
        given = floor if has_floor and run["prefers_floor"] else chosen
        best = max([*run["all"], floor] if has_floor else run["all"])
        found.setdefault(name, {})[case] = {"chosen": chosen, "given": given, "best": best}
        if prior_of(name) != KNOWN_SHARES:
            of_floor = FLOOR if prior_of(name) == EQUAL[0] else ESTIMATED_FLOOR
            found.setdefault(of_floor, {})[case] = dict.fromkeys(("chosen", "given", "best"), floor)
    return found


def mean_of(values: dict[Case, dict[str, float]], key: str, variant: str = "", data: str = "") -> float:
    """In percent; every data set counts the same. variant: what its name begins with."""
    of_data: dict[str, list[float]] = {}
    for case, value in values.items():
        if case[1].startswith(variant) and data in ("", case[0]):
            of_data.setdefault(case[0], []).append(value[key])
    return 100 * float(np.mean([np.mean(of) for of in of_data.values()]))


def worst(values: dict[Case, dict[str, float]], other: dict[Case, dict[str, float]], key: str) -> float:
    """The smallest difference to another candidate's chosen epoch, mean over the seeds of a case, in points."""
    of_case: dict[tuple[str, str, int], list[float]] = {}
    for case, value in values.items():
        of_case.setdefault(case[:3], []).append(value[key] - other[case]["chosen"])
    return 100 * min(float(np.mean(of)) for of in of_case.values())


def left_out(
    found: dict[str, dict[Case, dict[str, float]]], names: Sequence[str], sets: Sequence[str]
) -> dict[str, str]:
    """For each data set the candidate that is best on all others."""
    return {
        data: max(names, key=lambda name: mean_of({c: v for c, v in found[name].items() if c[0] != data}, "chosen"))
        for data in sets
    }


def table(content: dict[str, Any]) -> str:
    """Markdown, in percent and points."""
    found = with_floor(content["runs"])
    sets = [data for data in DATA if any(case[0] == data for case in found[FLOOR])]
    names = [
        name
        for name in (FLOOR, ESTIMATED_FLOOR, *CANDIDATES)
        if {case[:3] for case in found.get(name, {})} == {case[:3] for case in found[FLOOR]}
    ]
    lines = [
        f"{len(sets)} development data sets: target accuracy in percent of the epoch that is chosen without target labels, on "
        f"all records of the target, mean over six cases a data set (each domain as the target; one target each with class "
        f"shares from Dirichlet's distribution of 1 and of 0.5, and with 30 % of all pictures missing) and over the seeds in "
        f"brackets. Frozen encoders' features. *Given*: with the floor where the product prefers it. "
        f"*Regret*: the best of all epochs and the floor, less that. *Worst*: of the chosen epochs, over all cases, against "
        f"source-only training and against the floor. `python -m benchmarks.choose_preset --cache FOLDER "
        f"--out benchmarks/results/choose_preset.json`\n",
        f"| candidate | {' | '.join(sets)} | mean | own | resampled | missing | given | regret | worst |",
        "|---|" + "---|" * (len(sets) + 7),
    ]
    for name in sorted(names, key=lambda name: -mean_of(found[name], "chosen")):
        values = found[name]
        cells = [f"{mean_of(values, 'chosen', data=data):.1f}" for data in sets]
        cells += [f"**{mean_of(values, 'chosen'):.1f}**"]
        cells += [f"{mean_of(values, 'chosen', variant):.1f}" for variant in ("own", "dirichlet", "missing")]
        given = mean_of(values, "given")
        cells += [f"{given:.1f}", f"{mean_of(values, 'best') - given:.1f}"]
        others = [worst(values, found[other], "chosen") for other in ("source-only", FLOOR)]
        seeds = len({case[3] for case in values})
        lines.append(f"| {name} ({seeds}) | {' | '.join(cells)} | {others[0]:+.1f}, {others[1]:+.1f} |")
    whole = [name for name in names if len(found[name]) == len(found[FLOOR])]  # of all seeds
    fair = [name for name in whole if name not in CANDIDATES or KNOWN_SHARES not in CANDIDATES[name][1]]
    chosen = left_out(found, fair, sets)
    cells = [f"{mean_of(found[name], 'chosen', data=data):.1f}" for data, name in chosen.items()]
    overall = np.mean([mean_of(found[name], "chosen", data=data) for data, name in chosen.items()])
    known = max((name for name in KNOWN if name in names), key=lambda name: mean_of(found[name], "chosen"))
    lines += [
        f"| best on the other data sets | {' | '.join(cells)} | **{overall:.1f}** |" + " |" * 6,
        "",
        "Chosen for a data set by all others, of the candidates of all seeds: "
        + ", ".join(f"{data} {name}" for data, name in chosen.items())
        + ". "
        "The best of source-only training, the floor, MCC alone and `published` is "
        f"{known}: {mean_of(found[known], 'chosen'):.1f}.",
        "",
        estimated_shares(content["runs"]),
    ]
    return "\n".join(lines)


def estimated_shares(runs: Sequence[dict[str, Any]]) -> str:
    """How far the class shares that `recommended` goes by are from the true ones, against equal ones, in a sentence."""
    errors: dict[str, dict[Case, float]] = {"recommended": {}, "labels from the floor": {}}
    for run in runs:
        if run["candidate"] in errors and "shares_error" in run:
            errors[run["candidate"]][run["data"], run["variant"], run["target"], run["seed"]] = run["shares_error"]
    ours, equal = errors.values()
    said = []
    for variant, words in (("own", "own classes"), ("dirichlet", "resampled classes"), ("missing", "pictures missing")):
        cases = [case for case in ours if case in equal and case[1].startswith(variant)]
        if cases:
            means = [float(np.mean([of[case] for case in cases])) for of in (ours, equal)]
            changed = sum(ours[case] != equal[case] for case in cases)
            said.append(f"{words} {means[0]:.2f} against {means[1]:.2f} (estimated in {changed} of {len(cases)})")
    return (
        "Class shares that `recommended` goes by (`uacr.prior: auto`), sum of absolute differences to the true ones, against "
        f"those of equal shares: {', '.join(said)}."
    )


def main() -> None:
    parser = cases_parser(__doc__, DATA)
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), help="places in CASES")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = KeptRuns(arguments.out)
    places = product(arguments.seeds, arguments.data, arguments.cases, arguments.candidates)
    for seed, data, number, candidate in places:
        variant, target = CASES[number]
        case = {"data": data, "variant": variant, "target": target, "seed": seed, "candidate": candidate}
        if kept.has(**case) or (data == "captions" and variant == "missing"):
            continue
        found = run_one(cache=arguments.cache, **case)
        kept.add([found])
        best = found["all"][found["chosen"]]
        print(*case.values(), f"floor {found['floor_all']} chosen {best} best {max(found['all'])}", flush=True)
    print(table({"runs": kept.runs}))


if __name__ == "__main__":
    main()
