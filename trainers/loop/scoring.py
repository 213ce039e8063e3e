"""After an epoch: every target sample and every validation sample is scored once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Corpus, Part
from trainers.loop.batches import Batches
from trainers.loop.evaluation import classification_metrics
from trainers.loop.floor_labels import FloorLabels
from trainers.loop.reference_records import ReferenceCollector
from trainers.loop.validator_inputs import ValidatorInputsCollector
from trainers.m2can.collective import Collective
from trainers.m2can.network import M2CAN
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.reference import Seen
from trainers.validators import ValidatorInputs
from trainers.validators.checked import checked_metrics
from trainers.validators.expected import expected_accuracy

COLUMNS = ("label", "score", "prob", "variance")
VOTES = ("voted_label", "voted_prob")  # by floor and network together, of the target's training rows; elsewhere zeros


@dataclass(frozen=True)
class Scored:
    """Of the rows of some parts, on every worker the same.

    columns: COLUMNS by name, [rows of all parts]; 16 bytes a row in float32, 24 where the floor labels too (VOTES).
    parts: in the order of the columns' rows.
    validator_inputs: what the validators read.
    seen: what later records are compared with; see trainers.model.reference.
    waited_s: seconds for which the device lacked data.
    """

    columns: dict[str, np.ndarray]
    parts: list[Part]
    validator_inputs: ValidatorInputs
    seen: Seen
    waited_s: float

    def of(self, part: Part) -> dict[str, np.ndarray]:
        """The columns of one part."""
        return {name: column for name, column in self._of(part).items() if name in COLUMNS}

    def votes(self, part: Part) -> dict[str, np.ndarray]:
        """The same of the target's training part, with labels and probabilities by floor and network where both vote."""
        columns = self._of(part)
        voted = dict(zip(("label", "prob"), VOTES, strict=True)) if VOTES[0] in columns else {}
        return self.of(part) | {name: columns[vote] for name, vote in voted.items()}

    def _of(self, part: Part) -> dict[str, np.ndarray]:
        start = 0
        for other in self.parts:
            if other is part:
                return {name: column[start : start + len(part)] for name, column in self.columns.items()}
            start += len(other)
        raise KeyError(f"{part.domain}/{part.split}")


def score_epoch(
    batches: Batches,
    network: M2CAN,
    collective: Collective,
    autocast: Callable[[], AbstractContextManager[None]],
    floor: FloorLabels | None = None,
) -> Scored:
    """Score this worker's share of the rows of `batches.eval_plan` and exchange the results.

    A worker keeps 16 bytes a row in float32, on its device: the host never waits for a batch.

    Args:
        autocast: makes the context of a forward pass, as in training.
        floor: labels the target's training rows too. None: the network alone does.
    """
    parts, plan = batches.eval_plan()
    target, device, dtype = parts[0], batches.device, batches.dtype
    collector = ValidatorInputsCollector(batches.corpus, batches.labels, network)
    reference = ReferenceCollector(batches.corpus, batches.card.vocabulary, network)
    scored: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    both: list[tuple[Tensor, Tensor]] = []  # logits of the floor and of the network
    mine = list(plan.worker_batches(collective.rank, collective.world_size))
    training = network.training
    network.eval()
    with batches.evaluate(mine) as feed, torch.inference_mode():
        for host, batch in feed:
            floor_BC = None
            with autocast():
                if floor is not None:
                    batch, floor_BC = floor.with_features(network, host.rows, batch)
                outputs = network(batch).single()
            collector.add(host.rows, outputs)
            reference.add(host, outputs)
            logits_HBC = outputs.logits_HQDBC[:, 0, 0]
            if floor_BC is not None:
                # The target's rows come first, so that those of a batch stand at its beginning.
                in_target = int(((host.rows >= target.start) & (host.rows < target.stop)).sum())
                both.append((floor_BC[:in_target], logits_HBC.mean(0)[:in_target]))
            scores = score_samples(logits_HBC)
            for name, column in scored.items():
                value = getattr(scores, name)
                column.append(value.to(torch.int32 if name == "label" else dtype))
        inputs, seen = collector.finish(collective), reference.finish(collective)
        network.train(training)
        if floor is not None:
            label_N = torch.zeros(sum(map(len, mine)), dtype=torch.int32, device=device)
            prob_N = torch.zeros_like(label_N, dtype=dtype)
            if both:
                floor_NC, network_NC = (torch.cat(same) for same in zip(*both, strict=True))
                label, prob = floor.vote(floor_NC, network_NC, inputs)
                label_N[: len(label)], prob_N[: len(label)] = label.to(torch.int32), prob.to(dtype)
            scored |= dict(zip(VOTES, ([label_N], [prob_N]), strict=True))
        columns = gather_columns(scored, len(plan.rows), collective, device=device, dtype=dtype)
    return Scored(columns, parts, inputs, seen, feed.waited)


def gather_columns(
    scored: dict[str, list[Tensor]], rows: int, collective: Collective, *, device: torch.device, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """All workers' rows, in rank order, a column at a time: beside the result, at most two columns are held."""
    columns = {}
    for name, mine in scored.items():
        local = torch.cat(mine) if mine else torch.empty(0, dtype=torch.int32 if name == "label" else dtype)
        mine.clear()
        columns[name] = collective.gather(local.to(device)[None, :, None], rows)[0, :, 0].cpu().numpy()
    return columns


def accuracies_by_domain(corpus: Corpus, of_part: Callable[[Part], tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Accuracy and macro-F1 of every domain's validation part that has labels, by name, and the sources' mean.

    Args:
        of_part: labels, -1 where unlabelled, and predicted classes of a part's rows.
    """
    metrics: dict[str, float] = {}
    of_sources = []
    for domain, part in enumerate(corpus.val):
        if part is None:
            continue
        found = classification_metrics(*of_part(part))
        is_target = domain == corpus.num_sources
        name = "target/val" if is_target else f"source/{part.domain}/val"
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
        if found and not is_target:
            of_sources.append(found)
    for key in ("accuracy", "macro_f1") if of_sources else ():
        metrics[f"source/val/{key}"] = float(np.mean([found[key] for found in of_sources]))
    return metrics


def validation_metrics(scored: Scored, corpus: Corpus, labels: np.ndarray) -> dict[str, float]:
    """`accuracies_by_domain`; of the target also the accuracy that is expected without its labels, and that on labels that
    were given and held out.

    Args:
        labels: of all rows, -1 where unlabelled.
    """
    metrics = accuracies_by_domain(corpus, lambda part: (labels[part.start : part.stop], scored.of(part)["label"]))
    if (expected := expected_accuracy(scored.validator_inputs)) is not None:
        metrics |= expected.metrics()
    if (given := corpus.given) is not None:
        target = corpus.train[-1]
        predicted = scored.of(target)["label"][given.check_rows - target.start]
        metrics |= checked_metrics(predicted, given.check_labels)
    return metrics
