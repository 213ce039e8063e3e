"""Collects predictions and facts of some target records while an epoch is scored (see trainers.model.reference)."""

from __future__ import annotations

import numpy as np
import torch

from datasets_manifest.records.corpus import Corpus, Part
from datasets_manifest.stream.encode import HostBatch, Vocabulary
from datasets_manifest.stream.source import FeatureBatch
from trainers.m2can.batch import Outputs, sent
from trainers.m2can.collective import Collective
from trainers.m2can.network import FUSED, M2CAN
from trainers.model.reference import FACTS, MOST_RECORDS, Seen, facts_of, unknown_token
from trainers.validators.inputs import spread


def reference_part(corpus: Corpus) -> Part:
    """The target's validation records, or its training records where it has none: the model was not trained on the former, as
    on none that come later."""
    validation = corpus.val[-1]
    return validation if validation is not None and len(validation) else corpus.train[-1]


class FactsCollector:
    """Collects FACTS of at most MOST_RECORDS records of `reference_part`, in the order of `rows`."""

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary) -> None:
        self.rows = spread(reference_part(corpus).rows, MOST_RECORDS)
        self._unknown = unknown_token(vocabulary.json)
        self._facts_NF = np.zeros((len(self.rows), len(FACTS)), np.float32)

    def add(self, host: HostBatch | FeatureBatch) -> tuple[np.ndarray, np.ndarray]:
        """The places among `rows` of those that a batch has, and their places in the batch."""
        place = np.searchsorted(self.rows, host.rows).clip(max=len(self.rows) - 1)
        mine = np.flatnonzero(self.rows[place] == host.rows)
        if len(mine):
            self._facts_NF[place[mine]] = facts_of(host, self._unknown)[mine]
        return place[mine], mine

    def finish(self, collective: Collective, device: torch.device) -> np.ndarray:
        """Exchange with the other workers: [N, F]."""
        return collective.sum_(sent(self._facts_NF, device)).cpu().numpy()


class ReferenceCollector:
    """Takes the outputs of records of `reference_part`, batch by batch; afterwards every worker holds them all.

    Args:
        network: the one that is scored.
    """

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, network: M2CAN) -> None:
        self._facts = FactsCollector(corpus, vocabulary)
        self._classes, device = network.num_classes, next(network.parameters()).device
        self._outputs = torch.zeros(len(self._facts.rows), self._classes + FUSED, device=device)

    def add(self, host: HostBatch | FeatureBatch, outputs: Outputs) -> None:
        """Keep what is wanted of a batch of one view and one domain. The host waits for nothing."""
        place, mine = self._facts.add(host)
        if not len(mine):
            return
        found = torch.cat([outputs.fused_logits_DBC[0].softmax(-1), outputs.fused_DBK[0]], 1).float()
        at, taken = (sent(x, self._outputs.device) for x in (place, mine))
        self._outputs.index_copy_(0, at, found.index_select(0, taken))

    def finish(self, collective: Collective) -> Seen:
        """Exchange with the other workers."""
        outputs = collective.sum_(self._outputs).cpu().numpy()
        facts = self._facts.finish(collective, self._outputs.device)
        return shuffled(Seen(outputs[:, : self._classes], outputs[:, self._classes :], facts))


def shuffled(seen: Seen) -> Seen:
    """In an order that does not tell which record is which."""
    return seen.take(np.random.default_rng(0).permutation(len(seen)))
