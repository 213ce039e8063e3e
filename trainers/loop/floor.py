"""The floor of a run: a linear classifier on the untrained encoders' features, fitted and scored before the first step.

All workers read and encode; the first one fits. Nothing of training moves by it: weights, batch statistics, random
numbers and the plan stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Part
from trainers.loop.floor_features import encode_parts, rows_to_read
from trainers.loop.floor_labels import FloorLabels
from trainers.loop.floor_predictions import ACCURACIES, FloorPredictions
from trainers.loop.loop import Loop
from trainers.loop.reference_records import FactsCollector
from trainers.loop.zero_shot import joined, make_zero_shot
from trainers.m2can.floor import Features, Floor, FloorHead, FloorNetwork, ZeroShotHead, estimate_shares, fit_floor
from trainers.recipe import Recipe
from trainers.recipe.training_rule import what_is_trained

SHARES = "shares/"  # before a class's name, among a floor's metrics


@dataclass(frozen=True)
class FoundFloor:
    """A fitted floor.

    metrics: source and target validation accuracy and macro-F1, expected accuracy, score of the validator, seconds, by name;
    accuracy and macro-F1 of the zero-shot classifier by `zero_shot/…`, class shares that were estimated by `shares/<class>`.
    evaluation: its predictions, under the names that they have in a checkpoint; `<domain>/<split>/row` says which rows of a part
    it has where those are not all. zero_shot: the same of a zero-shot classifier; None: the network does not begin as a dual
    encoder.
    """

    network: FloorNetwork
    metrics: dict[str, float]
    evaluation: dict[str, Tensor]
    zero_shot: FoundFloor | None = None


def has_floor(recipe: Recipe) -> bool:
    """Whether a run of the recipe has a floor: it adapts to a target, and is not the published method."""
    return recipe.preset != "published" and recipe.target_takes_part and recipe.train.target_labels != "oracle"


def found_shares(metrics: Mapping[str, float], classes: Sequence[str]) -> np.ndarray | None:
    """The class shares that were estimated with a floor, [C]; None: they were not."""
    shares = [metrics[f"{SHARES}{name}"] for name in classes if f"{SHARES}{name}" in metrics]
    return np.array(shares) if shares else None


def start_from_floor(loop: Loop, floor: FloorLabels) -> None:
    """Let the floor label the target: before the first step alone, then together with the network.

    All workers call it together, after a checkpoint was loaded, and before the first batches are asked for.
    """
    loop.floor_labels, loop.pseudo_labels.found_prior = floor, floor.prior_C
    if not (loop.epoch or loop.steps_done):
        target = loop.corpus.train[-1]
        columns = loop.score(replace(floor, alone=True)).votes(target)
        loop.pseudo_labels.update(0, columns, loop.batches.labels[target.start : target.stop])


def labels_by_floor(recipe: Recipe) -> bool:
    """Whether pseudo labels begin with the floor's: `uacr.warmup` is 0, and the floor was fitted to features that stay."""
    frozen = what_is_trained(recipe) == "heads on frozen encoders"
    return has_floor(recipe) and recipe.uses_pseudo_labels and recipe.uacr.warmup == 0 and frozen


def find_floor(loop: Loop) -> FoundFloor | None:
    """Read, encode and fit, before the first step. All workers call it together; None but for the first of them, and
    where a feature is not finite."""
    started = time.perf_counter()
    facts = FactsCollector(loop.corpus, loop.card.vocabulary)
    scored, taught = rows_to_read(loop, facts)
    features = encode_parts(loop, facts, scored, taught)
    facts_NF = facts.finish(loop.collective, loop.device)
    if loop.rank != 0 or not all(x.isfinite().all() for of_part in features.values() for x in of_part.values()):
        return None

    def found(head: FloorHead | ZeroShotHead, outputs: dict[Part, tuple[Tensor, Tensor]]) -> FoundFloor:
        logits, components = ({part: both[i].cpu() for part, both in outputs.items()} for i in (0, 1))
        predictions = FloorPredictions(loop.corpus, loop.batches.labels, scored, logits, components)
        inputs = predictions.validator_inputs()
        tensors = {name: torch.from_numpy(x) for name, x in inputs.arrays().items()}
        tensors |= predictions.columns() | predictions.seen(facts.rows, facts_NF).tensors()
        network = FloorNetwork(loop.network.text_encoder, loop.network.picture_encoder, head)
        return FoundFloor(network, predictions.metrics(loop.recipe.selection.validator, inputs), tensors)

    floor, shares_C = _fit(loop, features, scored, taught)
    head = FloorHead((loop.network.text_encoder.width, loop.network.picture_encoder.width), len(loop.corpus.classes))
    head.to(loop.device, loop.dtype).take(floor)
    own = {part.domain: floor.for_domain(features[part]) for part in loop.corpus.train}
    at = {part: (own[part.domain], features[part]) for part in scored}
    result = found(head, {part: (of.logits(x), of.projected(x)) for part, (of, x) in at.items()})
    metrics = dict(result.metrics)
    zero_shot_head, zero_shot = make_zero_shot(loop, features[loop.corpus.train[-1]]), None
    if zero_shot_head is not None:
        with torch.no_grad():
            outputs = {part: zero_shot_head(joined(zero_shot_head, features[part])) for part in scored}
        zero_shot = found(zero_shot_head, outputs)
        zero_shot.metrics.pop("selection/score", None)  # it is not chosen
        metrics |= {f"zero_shot/{name}": zero_shot.metrics[name] for name in ACCURACIES if name in zero_shot.metrics}
    if shares_C is not None:
        metrics |= {f"{SHARES}{name}": x for name, x in zip(loop.corpus.classes, shares_C.tolist(), strict=True)}
    metrics["time/floor_s"] = time.perf_counter() - started
    return replace(result, metrics=metrics, zero_shot=zero_shot)


def _fit(
    loop: Loop, features: Mapping[Part, Features], scored: Mapping[Part, np.ndarray], taught: Mapping[Part, np.ndarray]
) -> tuple[Floor, Tensor | None]:
    """The floor of the labelled source rows and the target's, and the target's class shares if they were estimated."""
    corpus, stated, target = loop.corpus, loop.recipe.uacr.prior, loop.corpus.train[-1]
    sources = []
    for part, rows in taught.items():
        labels = torch.from_numpy(loop.batches.labels[rows].astype(np.int64))
        at = (labels >= 0).nonzero().squeeze(1)
        sources.append(({name: x[at.to(x.device)] for name, x in features[part].items()}, labels[at].to(loop.device)))
    shares_C = None
    if stated == "auto" and what_is_trained(loop.recipe) == "heads on frozen encoders":
        shares_C = estimate_shares(sources, features[target], len(corpus.classes))
    prior_C = torch.from_numpy(loop.pseudo_labels.prior()) if isinstance(stated, list) else shares_C
    labelled = None
    if (given := corpus.given) is not None:
        places = torch.from_numpy(np.searchsorted(scored[target], given.rows))
        labelled = places.to(loop.device), torch.from_numpy(given.labels).to(loop.device)
    return fit_floor(sources, features[target], len(corpus.classes), prior=prior_C, labelled=labelled), shares_C
