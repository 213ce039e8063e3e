"""Predictions of the floor, or of a zero-shot classifier, for the rows that an epoch scores; named as an epoch's are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Corpus, Part
from trainers.loop.reference_records import reference_part, shuffled
from trainers.loop.scoring import COLUMNS, accuracies_by_domain
from trainers.loop.validator_inputs import pairs, validator_rows
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.reference import Seen
from trainers.validators import Validator, ValidatorInputs, epoch_score
from trainers.validators.checked import checked_metrics
from trainers.validators.expected import expected_accuracy
from trainers.validators.inputs import spread
from trainers.validators.mixing import SHARE

ACCURACIES = tuple(f"{part}/val/{key}" for part in ("source", "target") for key in ("accuracy", "macro_f1"))


@dataclass(frozen=True)
class FloorPredictions:
    """A head's outputs for the rows that were read of the parts that an epoch scores, the target's training part first.

    labels: of all rows of the table, -1 where unlabelled. rows: row numbers of each part, ascending. logits, components: of
    each part's rows, [N, C] and [N, 64], on the CPU.
    """

    corpus: Corpus
    labels: np.ndarray
    rows: Mapping[Part, np.ndarray]
    logits: Mapping[Part, Tensor]
    components: Mapping[Part, Tensor]

    def validator_inputs(self) -> ValidatorInputs:
        """Inputs of the validators, for the same rows as of every epoch."""
        all_rows = np.concatenate(list(self.rows.values()))
        logits, features = (torch.cat([of[part] for part in self.rows]) for of in (self.logits, self.components))
        order = np.argsort(all_rows, kind="stable")
        read = [spread(rows) for rows in validator_rows(self.corpus, self.labels)]
        target, source = (order[np.searchsorted(all_rows, rows, sorter=order)] for rows in read)
        first, second = pairs(len(target))
        # A linear map of mixed features is the mixture of what it gives for each.
        mixed = SHARE * logits[target][first] + (1 - SHARE) * logits[target][second]
        label = logits[target].argmax(1).numpy()
        return ValidatorInputs(
            target_probs_NC=logits[target].softmax(1).float().numpy(),
            target_features_NK=features[target].float().numpy(),
            source_probs_MC=logits[source].softmax(1).float().numpy(),
            source_features_MK=features[source].float().numpy(),
            source_labels_M=self.labels[read[1]].astype(np.int64),
            mixed_probs_RC=mixed.softmax(1).float().numpy(),
            mixed_dominant_R=label[first],
            mixed_other_R=label[second],
        )

    def metrics(self, validator: Validator, inputs: ValidatorInputs) -> dict[str, float]:
        """ACCURACIES, the accuracy on labels of the target that were held out, the expected one, and the validator's score;
        without what is not finite."""
        found = accuracies_by_domain(
            self.corpus, lambda part: (self.labels[self.rows[part]], self.logits[part].argmax(1).numpy())
        )
        metrics = {name: found[name] for name in ACCURACIES if name in found}
        if (given := self.corpus.given) is not None:
            target = self.corpus.train[-1]
            checked = np.searchsorted(self.rows[target], given.check_rows)
            metrics |= checked_metrics(self.logits[target].argmax(1).numpy()[checked], given.check_labels)
        metrics["selection/score"] = epoch_score(validator, inputs)
        if (expected := expected_accuracy(inputs)) is not None:
            metrics |= expected.metrics()
        return {name: x for name, x in metrics.items() if math.isfinite(x)}

    def columns(self) -> dict[str, Tensor]:
        """By row, under the names that they have in a checkpoint; `<domain>/<split>/row` where not all rows of a part were
        read."""
        tensors = {"kept_rows": torch.empty(0, dtype=torch.int64)}
        for part, read in self.rows.items():
            scores = score_samples(self.logits[part][None])
            named = f"{part.domain}/{part.split}"
            for column in COLUMNS:
                value = getattr(scores, column)
                tensors[f"{named}/{column}"] = value.to(torch.int32 if column == "label" else torch.float32)
            tensors[f"{named}/true"] = torch.from_numpy(self.labels[read].astype(np.int64))
            if len(read) < len(part):
                tensors[f"{named}/row"] = torch.from_numpy(read - part.start)
        return tensors

    def seen(self, rows: np.ndarray, facts_NF: np.ndarray) -> Seen:
        """The reference for later records: outputs for these rows of `reference_part`, and their facts."""
        part = reference_part(self.corpus)
        places = np.searchsorted(self.rows[part], rows)
        probs_NC = self.logits[part][places].softmax(1).float().numpy()
        return shuffled(Seen(probs_NC, self.components[part][places].float().numpy(), facts_NF))
