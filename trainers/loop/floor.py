"""The floor of a run: what a linear classifier on the initial encoders' features makes of the target, before any training.

All workers read and encode; the first one fits. Nothing of training moves by it: weights, batch statistics, random
numbers and the plan stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Part
from datasets_manifest.records.target_labels import TargetLabels
from datasets_manifest.stream.plan import DomainPool, EpochPlan, EvalPlan
from trainers.compute.precision import eval_batch_size
from trainers.loop.evaluation import classification_metrics
from trainers.loop.floor_labels import FloorLabels
from trainers.loop.loop import Loop
from trainers.loop.reference_records import FactsCollector, reference_part, shuffled
from trainers.loop.scoring import COLUMNS
from trainers.loop.validator_inputs import pairs, validator_rows
from trainers.loop.zero_shot import joined, make_zero_shot
from trainers.m2can.floor import Features, FloorHead, FloorNetwork, ZeroShotHead, estimate_shares, fit_floor
from trainers.m2can.network import features_of
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.reference import Seen
from trainers.recipe import Recipe
from trainers.recipe.training_rule import what_is_trained
from trainers.validators import ValidatorInputs, epoch_score
from trainers.validators.checked import checked_metrics
from trainers.validators.expected import expected_accuracy
from trainers.validators.inputs import spread
from trainers.validators.mixing import SHARE

# Of each part of each domain: they bound memory and time, and a probe with strong decay gains nothing from more.
MOST_ROWS = 4096
_SHOWN = tuple(f"{part}/val/{key}" for part in ("source", "target") for key in ("accuracy", "macro_f1"))
SHARES = "shares/"  # before a class's name, among a floor's metrics
_READ = {"both": ("text", "picture"), "text": ("text",), "pictures": ("picture",)}


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
    corpus, labels = loop.corpus, loop.batches.labels
    targets, sources = validator_rows(corpus, labels)
    facts = FactsCollector(corpus, loop.card.vocabulary)
    looked_at = [spread(targets), spread(sources), facts.rows]  # of every epoch
    if corpus.given is not None:
        looked_at += [corpus.given.rows, corpus.given.check_rows]
    wanted = np.concatenate(looked_at)
    scored = [corpus.train[-1], *(part for part in corpus.val if part is not None)]
    rows = {id(part): rows_of(part, wanted, loop.recipe.train.seed) for part in [*scored, *corpus.train[:-1]]}
    features = _encoded(loop, facts, *([rows[id(part)] for part in parts] for parts in (scored, corpus.train[:-1])))
    of_reference = facts.finish(loop.collective, loop.device)
    if loop.rank != 0 or not all(x.isfinite().all() for part in features for x in part.values()):
        return None
    of_part = dict(zip(rows, features, strict=True))
    taught = []
    for part in corpus.train[:-1]:
        known = torch.from_numpy(labels[rows[id(part)]].astype(np.int64))
        at = (known >= 0).nonzero().squeeze(1)
        taught.append(({name: x[at.to(x.device)] for name, x in of_part[id(part)].items()}, known[at].to(loop.device)))
    target = of_part[id(scored[0])]
    stated = loop.recipe.uacr.prior
    prior = torch.from_numpy(loop.pseudo_labels.prior()) if isinstance(stated, list) else None
    if stated == "auto" and what_is_trained(loop.recipe) == "heads on frozen encoders":
        prior = estimate_shares(taught, target, len(corpus.classes))
    labelled = _labelled(corpus.given, rows[id(scored[0])], loop.device)
    floor = fit_floor(taught, target, len(corpus.classes), prior=prior, labelled=labelled)
    head = FloorHead((loop.network.text_encoder.width, loop.network.picture_encoder.width), len(corpus.classes))
    head.to(loop.device, loop.dtype).take(floor)
    own = {part.domain: floor.for_domain(of_part[id(part)]) for part in corpus.train}

    def told(head: FloorHead | ZeroShotHead, predicted: dict[int, tuple[Tensor, Tensor]]) -> FoundFloor:
        evidence = _evidence(scored, rows, predicted, (targets, sources), labels)
        metrics = _metrics(scored, rows, predicted, labels)
        metrics |= _checked(corpus.given, rows[id(scored[0])], predicted[id(scored[0])][0])
        metrics["selection/score"] = epoch_score(loop.recipe.selection.validator, evidence)
        expected = expected_accuracy(evidence)
        metrics |= expected.metrics() if expected else {}
        tensors = {name: torch.from_numpy(x) for name, x in evidence.arrays().items()}
        tensors |= _columns(scored, rows, predicted, labels)
        part = reference_part(corpus)
        places = np.searchsorted(rows[id(part)], facts.rows)
        logits, components = (x[places] for x in predicted[id(part)])
        seen = Seen(logits.softmax(1).float().numpy(), components.float().numpy(), of_reference)
        tensors |= shuffled(seen).tensors()
        network = FloorNetwork(loop.network.text_encoder, loop.network.picture_encoder, head)
        return FoundFloor(network, {k: v for k, v in metrics.items() if math.isfinite(v)}, tensors)

    predicted = {}
    for part in scored:
        given = of_part[id(part)]
        predicted[id(part)] = own[part.domain].logits(given).cpu(), own[part.domain].projected(given).cpu()
    found = told(head, predicted)
    zero_shot = _zero_shot(loop, target, {id(part): of_part[id(part)] for part in scored}, told)
    more = (
        {f"zero_shot/{key}": zero_shot.metrics[key] for key in _SHOWN if key in zero_shot.metrics} if zero_shot else {}
    )
    if stated == "auto" and prior is not None:
        more |= {f"{SHARES}{name}": float(share) for name, share in zip(corpus.classes, prior, strict=True)}
    metrics = found.metrics | more | {"time/floor_s": time.perf_counter() - started}
    return replace(found, metrics=metrics, zero_shot=zero_shot)


@torch.no_grad()
def _zero_shot(
    loop: Loop,
    target: Features,
    scored: dict[int, Features],
    told: Callable[[ZeroShotHead, dict[int, tuple[Tensor, Tensor]]], FoundFloor],
) -> FoundFloor | None:
    """The zero-shot classifier on the features of the parts that are scored. It has no score: it is not chosen."""
    head = make_zero_shot(loop, target)
    if head is None:
        return None
    predicted = {}
    for part, features in scored.items():
        logits, components = head(joined(head, features))
        predicted[part] = logits.cpu(), components.cpu()
    found = told(head, predicted)
    return replace(found, metrics={name: x for name, x in found.metrics.items() if name != "selection/score"})


def _labelled(given: TargetLabels | None, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Places among the target's rows and labels of those whose label was given."""
    if given is None:
        return None
    return torch.from_numpy(np.searchsorted(rows, given.rows)).to(device), torch.from_numpy(given.labels).to(device)


def _checked(given: TargetLabels | None, rows: np.ndarray, logits: Tensor) -> dict[str, float]:
    """Metrics of the accuracy on the target's labels that were held out."""
    if given is None:
        return {}
    return checked_metrics(logits.argmax(1).numpy()[np.searchsorted(rows, given.check_rows)], given.check_labels)


def rows_of(part: Part, wanted: np.ndarray, seed: int) -> np.ndarray:
    """The rows of a part that are read, ascending: all, or those that are wanted and others by the plan's shuffle."""
    if len(part) <= MOST_ROWS:
        return part.rows
    first = np.intersect1d(part.rows, wanted)
    rest = np.setdiff1d(part.rows, first)
    pool, more = DomainPool(rest, np.zeros_like(rest)), MOST_ROWS - len(first)
    plan = EpochPlan.build(seed=seed, epoch=0, pools=[pool], samples_per_epoch=more, batch_size=more)
    return np.sort(np.concatenate([first, plan.rows_DN[0]]))


@torch.no_grad()
def _encoded(loop: Loop, facts: FactsCollector, *groups: Sequence[np.ndarray]) -> list[Features]:
    """Features of the rows of each part of each group, on every worker the same.

    The first group is that of every epoch's evaluation, whose encoded rows are kept for it.
    """
    network, names = loop.network, _READ[loop.network.modalities]
    size = eval_batch_size(loop.recipe, loop.device)
    joined = [np.concatenate(parts) for parts in groups]
    mine = [list(EvalPlan(rows, size).worker_batches(loop.rank, loop.world_size)) for rows in joined]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    training = network.training
    network.eval()
    whole = len(joined[0]) == len(loop.batches.eval_plan()[1].rows)
    with loop.batches.evaluate([b for batches in mine for b in batches], len(mine[0]) if whole else 0) as feed:
        for host, batch in feed:
            facts.add(host)
            with loop.autocast():
                features = dict(zip(("text", "picture"), features_of(network, batch), strict=True))
            for name in names:
                found[name].append(features[name])
    network.train(training)
    widths = {"text": network.text_encoder.width, "picture": network.picture_encoder.width}
    parts: list[Features] = []
    for rows, batches, of_group in zip(joined, mine, groups, strict=True):
        gathered = {}
        for name in names:
            local = torch.cat([torch.empty(0, widths[name], device=loop.device), *found[name][: len(batches)]])
            del found[name][: len(batches)]
            gathered[name] = loop.collective.gather(local.to(loop.dtype)[None], len(rows))[0]
        sizes = [len(part) for part in of_group]
        split = {name: x.split(sizes) for name, x in gathered.items()}
        parts += [{name: split[name][number] for name in names} for number in range(len(sizes))]
    return parts


def _evidence(
    scored: list[Part],
    rows: dict[int, np.ndarray],
    predicted: dict[int, tuple[Tensor, Tensor]],
    looked_at: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
) -> ValidatorInputs:
    """What the validators read, of the rows that they read of every epoch."""
    all_rows = np.concatenate([rows[id(part)] for part in scored])
    logits, features = (torch.cat([predicted[id(part)][i] for part in scored]) for i in (0, 1))
    order = np.argsort(all_rows, kind="stable")
    target, source = (order[np.searchsorted(all_rows, spread(some), sorter=order)] for some in looked_at)
    first, second = pairs(len(target))
    # A linear map of mixed features is the mixture of what it gives for each.
    mixed = SHARE * logits[target][first] + (1 - SHARE) * logits[target][second]
    label = logits[target].argmax(1).numpy()
    return ValidatorInputs(
        target_probs_NC=logits[target].softmax(1).float().numpy(),
        target_features_NK=features[target].float().numpy(),
        source_probs_MC=logits[source].softmax(1).float().numpy(),
        source_features_MK=features[source].float().numpy(),
        source_labels_M=labels[spread(looked_at[1])].astype(np.int64),
        mixed_probs_RC=mixed.softmax(1).float().numpy(),
        mixed_dominant_R=label[first],
        mixed_other_R=label[second],
    )


def _metrics(
    scored: list[Part], rows: dict[int, np.ndarray], predicted: dict[int, tuple[Tensor, Tensor]], labels: np.ndarray
) -> dict[str, float]:
    """As an epoch's (scoring.validation_metrics), of the validation parts."""
    metrics: dict[str, float] = {}
    of_sources = []
    target = scored[0].domain
    for part in scored[1:]:
        found = classification_metrics(labels[rows[id(part)]], predicted[id(part)][0].argmax(1).numpy())
        if part.domain == target:
            metrics |= {f"target/val/{key}": value for key, value in found.items()}
        elif found:
            of_sources.append(found)
    for key in ("accuracy", "macro_f1") if of_sources else ():
        metrics[f"source/val/{key}"] = float(np.mean([found[key] for found in of_sources]))
    return metrics


def _columns(
    scored: list[Part], rows: dict[int, np.ndarray], predicted: dict[int, tuple[Tensor, Tensor]], labels: np.ndarray
) -> dict[str, Tensor]:
    """By row, under the names that they have in a checkpoint."""
    tensors = {"kept_rows": torch.empty(0, dtype=torch.int64)}
    for part in scored:
        scores = score_samples(predicted[id(part)][0][None])
        named = f"{part.domain}/{part.split}"
        for column in COLUMNS:
            value = getattr(scores, column)
            tensors[f"{named}/{column}"] = value.to(torch.int32 if column == "label" else torch.float32)
        read = rows[id(part)]
        tensors[f"{named}/true"] = torch.from_numpy(labels[read].astype(np.int64))
        if len(read) < len(part):
            tensors[f"{named}/row"] = torch.from_numpy(read - part.start)
    return tensors
