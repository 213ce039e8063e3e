"""How far the expected target accuracy is from the true one, on cached features of frozen encoders.

    python -m benchmarks.expected --cache FOLDER [--out FILE]

Every domain of four development data sets is the target in turn, also with the classes of its records resampled. A run of
`recommended` gives an estimate after each epoch; labels of the target are read for the truth alone. The weights of the
signals are fitted to all data sets but one and judged on that one. Runs that --out holds already are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cached import CachedFeatures, cache_features, cached_loop
from benchmarks.icons import write_icons
from benchmarks.loops import KeptRuns, cases_parser
from benchmarks.small_data import write_captions, write_shapes
from benchmarks.variants import COMMON
from datasets_manifest.postcards.generate import write_postcards
from datasets_manifest.records.corpus import Part
from trainers.recipe import apply_override, make_recipe
from trainers.validators import choose_candidate
from trainers.validators.expected import LEAST_WRONG, SIGNALS, combined, signals

DATA = ("postcards", "captions", "shapes", "icons")
SHIFTS = (0.0, 1.0, 0.5)  # of Dirichlet's distribution of the target's class shares; 0: as they are
MOST = {"train": 300, "val": 150}  # icons of a set
PIXELS = {"postcards": 96, "captions": 48, "shapes": 48, "icons": 96}
FACTORS = (1.0, 1.25, 1.5, 1.75, 2.0)
# The thresholded confidence with one or both of the others.
CANDIDATES = [
    (("thresholded", *names), factor)
    for number in (1, 2)
    for names in combinations(SIGNALS[1:], number)
    for factor in FACTORS
]
LEAST_SHARE = 1 / 3  # of a split's records that stay when its classes are resampled


@lru_cache(maxsize=1)
def features_of(data: str, cache: Path) -> CachedFeatures:
    """The features of a data set; its files and theirs are kept in `cache`."""
    folder = cache / f"expected-{data}"
    if data == "postcards":
        manifests = list(write_postcards(folder, seed=0, train=400, val=200).values())
    elif data == "icons":
        manifests = write_icons(folder, cache, seed=0)
        _shorten(folder)
    else:
        manifests = write_captions(folder, 150) if data == "captions" else write_shapes(folder, 300)
    return cache_features(manifests, cache / f"{folder.name}-features", PIXELS[data])


def _shorten(folder: Path) -> None:
    """At most MOST records of each split."""
    for file in folder.glob("*/*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = np.random.default_rng(0).permutation(len(lines))[: MOST[file.stem]]
        file.write_text("".join(lines[i] for i in np.sort(kept)), encoding="utf-8")


def with_target(features: CachedFeatures, target: int, shift: float, seed: int) -> CachedFeatures:
    """The same features with another domain as the target, last.

    Args:
        target: place of the domain.
        shift: of Dirichlet's distribution from which the shares of its classes are drawn; 0 leaves its records as they are.
    """
    corpus, labels = features.corpus, features.corpus.labels
    draw = np.random.default_rng(seed)
    shares_C = draw.dirichlet([shift] * len(corpus.classes)) if shift else None
    order = [domain for domain in range(len(corpus.train)) if domain != target] + [target]
    rows: list[np.ndarray] = []
    found: dict[str, list[Part]] = {}
    start = 0
    for split, domain in product(("train", "val"), order):
        part = getattr(corpus, split)[domain]
        kept = part.rows
        if domain == target and shares_C is not None:
            kept = _resampled(kept, labels[kept], shares_C, draw)
        rows.append(kept)
        found.setdefault(split, []).append(Part(part.domain, split, start, start + len(kept)))
        start += len(kept)
    rows_R = np.concatenate(rows)
    corpus = replace(corpus, table=corpus.table.take(rows_R), train=found["train"], val=list(found["val"]))
    return replace(features.of_rows(rows_R), corpus=corpus)


def _resampled(rows_N: np.ndarray, labels_N: np.ndarray, shares_C: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Some of the rows, ascending, whose classes have nearly these shares: none is taken twice."""
    have_C = np.bincount(labels_N, minlength=len(shares_C))
    number = int(min(len(rows_N), max((have_C / np.maximum(shares_C, 1e-9)).min(), LEAST_SHARE * len(rows_N))))
    take_C = np.minimum(np.round(shares_C * number).astype(int), have_C)
    taken = [draw.choice(rows_N[labels_N == c], take, replace=False) for c, take in enumerate(take_C)]
    return np.sort(np.concatenate(taken))


def run_one(data: str, target: int, shift: float, cache: Path) -> dict[str, Any]:
    """True target accuracy and signals of every epoch of a run, and which epoch was chosen."""
    features = with_target(features_of(data, cache), target, shift, seed=0)
    tree: dict[str, Any] = {"data": features.card.recipe.data.model_dump(mode="json")}
    place = {Path(path).parent.name: path for path in [*tree["data"]["sources"], tree["data"]["target"]]}
    *sources, last = (place[part.domain] for part in features.corpus.train)
    tree["data"] |= {"sources": sources, "target": last}
    for override in [*COMMON, "train.seed=0"]:
        apply_override(tree, override)
    loop = cached_loop(features, make_recipe(tree))
    evidence, epochs = [], []
    while not loop.is_over:
        metrics, scored = loop.run_epoch()
        evidence.append(scored.validator_inputs)
        found = {name: round(value, 4) for name, value in signals(scored.validator_inputs).items()}
        of_target = features.corpus.train[-1], features.corpus.val[-1]
        right = [scored.of(part)["label"] == features.corpus.labels[part.rows] for part in of_target if part]
        accuracy = round(float(np.concatenate(right).mean()), 4)
        epochs.append({"accuracy": accuracy, "val": metrics["target/val/accuracy"], "signals": found})
        epochs[-1]["source"] = round(metrics["source/val/accuracy"], 4)
    selection = loop.recipe.selection
    return {
        "data": data,
        "target": target,
        "domain": features.corpus.target,
        "shift": shift,
        "chosen": choose_candidate(selection.validator, evidence, selection.gate),
        "epochs": epochs,
    }


Errors = dict[str, list[float]]  # estimate less truth, by data set
Estimator = tuple[tuple[str, ...], float]  # signals, and by what the error that their mean lets expect is multiplied


def errors_of(
    runs: Sequence[dict[str, Any]], estimator: Estimator, truth: str = "accuracy", relative: bool = False
) -> Errors:
    """Of the chosen epochs; relative: to the share of wrong predictions that the signals' mean lets expect."""
    (names, factor), found = estimator, Errors()
    for run in runs:
        epoch = run["epochs"][run["chosen"]]
        estimate, wrong = combined([epoch["signals"][name] for name in names], factor, epoch["source"])
        error = estimate - epoch[truth]
        found.setdefault(run["data"], []).append(error / max(wrong, LEAST_WRONG) if relative else error)
    return found


def mean_error(errors: Errors) -> float:
    """Mean absolute error; every data set counts the same."""
    return float(np.mean([np.abs(of_data).mean() for of_data in errors.values()]))


def best_estimator(runs: Sequence[dict[str, Any]]) -> Estimator:
    """The one that errs least."""
    return min(CANDIDATES, key=lambda estimator: mean_error(errors_of(runs, estimator)))


def left_out(
    runs: Sequence[dict[str, Any]],
    truth: str = "accuracy",
    relative: bool = False,
    others: Sequence[dict[str, Any]] | None = None,
) -> Errors:
    """Errors on each data set of the estimator that is best on all others.

    Args:
        others: from whose other data sets the estimator is chosen; None: `runs`.
    """
    found = Errors()
    for data in dict.fromkeys(run["data"] for run in runs):
        estimator = best_estimator([run for run in others or runs if run["data"] != data])
        found |= errors_of([run for run in runs if run["data"] == data], estimator, truth, relative)
    return found


def nine_of_ten(errors: Errors) -> float:
    """What nine of ten absolute errors are below."""
    return float(np.quantile(np.abs(np.concatenate(list(errors.values()))), 0.9))


def table(content: dict[str, Any]) -> str:
    """Markdown: errors in points."""
    runs = content["runs"]
    as_they_are, resampled = ([run for run in runs if bool(run["shift"]) is shifted] for shifted in (False, True))
    names, factor = best_estimator(runs)
    judged, spread = left_out(runs), nine_of_ten(left_out(runs, relative=True))
    rows: dict[str, Callable[[Sequence[dict[str, Any]]], Errors]] = {
        f"{name} alone": partial(errors_of, estimator=((name,), 1.0)) for name in SIGNALS
    }
    rows |= {
        f"used: {' + '.join(names)}, expected error × {factor:g}": partial(errors_of, estimator=(names, factor)),
        "chosen on the other data sets": partial(left_out, others=runs),
        "the same, against validation records alone": partial(left_out, others=runs, truth="val"),
    }
    lines = [
        f"Expected less true target accuracy of the chosen epoch, in points: mean absolute error (bias). {len(runs)} runs of "
        "`recommended` on frozen encoders' features; every domain is the target in turn, with its own classes and with classes "
        "whose shares are drawn from Dirichlet's distribution. The truth is that of all records of the target. The last two "
        "rows are what to expect on other data: the signals beside the first and the factor are chosen on all data sets but "
        f"the one that they are judged on. Nine of ten of those errors are below {100 * nine_of_ten(judged):.0f} points, and "
        f"below {spread:.1f} times the share of wrong predictions that the signals show, which every interval takes up. "
        "Wanted were 5 points: the mean over targets with their own classes is "
        f"{100 * mean_error(left_out(as_they_are, others=runs)):.1f}, with resampled "
        f"classes {100 * mean_error(left_out(resampled, others=runs)):.1f}. "
        "`python -m benchmarks.expected --cache FOLDER --out benchmarks/results/expected.json`\n",
        f"| estimate | {' | '.join(f'{data} ({len(errors)})' for data, errors in judged.items())} | own classes | resampled |",
        "|---|" + "---|" * (len(judged) + 2),
    ]
    for name, row in rows.items():
        errors = row(runs)
        cells = [f"{100 * np.abs(errors[data]).mean():.1f} ({100 * np.mean(errors[data]):+.1f})" for data in judged]
        cells += [f"{100 * mean_error(row(part)):.1f}" for part in (as_they_are, resampled)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = cases_parser(__doc__, DATA)
    parser.add_argument("--shifts", nargs="+", type=float, default=list(SHIFTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = KeptRuns(arguments.out)
    for data, target, shift in product(arguments.data, range(3), arguments.shifts):
        if not kept.has(data=data, target=target, shift=shift):
            kept.add([run_one(data, target, shift, arguments.cache)])
    print(table({"runs": kept.runs}))


if __name__ == "__main__":
    main()
