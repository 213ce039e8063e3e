"""Features of the rows that the floor is fitted to and scored on, by the encoders as they are before training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Part
from datasets_manifest.stream.plan import DomainPool, EpochPlan, EvalPlan
from trainers.compute.precision import eval_batch_size
from trainers.loop.loop import Loop
from trainers.loop.reference_records import FactsCollector
from trainers.loop.validator_inputs import validator_rows
from trainers.m2can.floor import Features
from trainers.m2can.names import ENCODERS_READ
from trainers.m2can.network import features_of
from trainers.validators.inputs import spread

# Of each part of each domain: they bound memory and time, and a probe with strong decay gains nothing from more.
MOST_ROWS = 4096


def rows_to_read(loop: Loop, facts: FactsCollector) -> tuple[dict[Part, np.ndarray], dict[Part, np.ndarray]]:
    """Row numbers by part: of the parts that an epoch scores, and of the sources' training parts.

    Of a part with more than MOST_ROWS these are first the rows of the validators, the reference records and the given labels.
    """
    corpus = loop.corpus
    wanted = [*map(spread, validator_rows(corpus, loop.batches.labels)), facts.rows]
    if corpus.given is not None:
        wanted += [corpus.given.rows, corpus.given.check_rows]
    first, seed = np.concatenate(wanted), loop.recipe.train.seed
    groups = loop.batches.eval_plan()[0], corpus.train[:-1]
    scored, taught = ({part: rows_of(part, first, seed) for part in parts} for parts in groups)
    return scored, taught


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
def encode_parts(loop: Loop, facts: FactsCollector, *groups: Mapping[Part, np.ndarray]) -> dict[Part, Features]:
    """Features of the rows of each part of each group, on every worker the same. All workers call it together.

    The first group is that of every epoch's evaluation, whose encoded rows are kept for it.
    """
    network, names = loop.network, ENCODERS_READ[loop.network.modalities]
    size = eval_batch_size(loop.recipe, loop.device)
    joined = [np.concatenate(list(parts.values())) for parts in groups]
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
    encoded: dict[Part, Features] = {}
    for rows, batches, parts in zip(joined, mine, groups, strict=True):
        split = {}
        for name in names:
            local = torch.cat([torch.empty(0, widths[name], device=loop.device), *found[name][: len(batches)]])
            del found[name][: len(batches)]
            gathered = loop.collective.gather(local.to(loop.dtype)[None], len(rows))[0]
            split[name] = gathered.split([len(own) for own in parts.values()])
        encoded |= {part: {name: split[name][number] for name in names} for number, part in enumerate(parts)}
    return encoded
