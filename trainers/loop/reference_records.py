"""Keeps what the network sees of some target records while an epoch is scored (see trainers.model.reference)."""

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


class ReferenceCollector:
    """Takes the outputs of records of `reference_part`, batch by batch; afterwards every worker holds them all.

    Args:
        network: the one that is scored.
    """

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, network: M2CAN) -> None:
        self._rows = spread(reference_part(corpus).rows, MOST_RECORDS)
        self._unknown = unknown_token(vocabulary.json)
        self._classes, device = network.num_classes, next(network.parameters()).device
        self._outputs = torch.zeros(len(self._rows), self._classes + FUSED, device=device)
        self._facts = np.zeros((len(self._rows), len(FACTS)), np.float32)

    def add(self, host: HostBatch | FeatureBatch, outputs: Outputs) -> None:
        """Keep what is wanted of a batch of one view and one domain. The host waits for nothing."""
        place = np.searchsorted(self._rows, host.rows).clip(max=len(self._rows) - 1)
        mine = np.flatnonzero(self._rows[place] == host.rows)
        if not len(mine):
            return
        self._facts[place[mine]] = facts_of(host, self._unknown)[mine]
        found = torch.cat([outputs.fused_logits_DBC[0].softmax(-1), outputs.fused_DBK[0]], 1).float()
        at, taken = (sent(x, self._outputs.device) for x in (place[mine], mine))
        self._outputs.index_copy_(0, at, found.index_select(0, taken))

    def finish(self, collective: Collective) -> Seen:
        """Exchange with the other workers. The order of the records is lost on purpose."""
        outputs = collective.sum_(self._outputs).cpu().numpy()
        facts = collective.sum_(sent(self._facts, self._outputs.device)).cpu().numpy()
        seen = Seen(outputs[:, : self._classes], outputs[:, self._classes :], facts)
        return seen.take(np.random.default_rng(0).permutation(len(seen)))
