"""Gathers what the validators need while an epoch is scored (see trainers.validators.inputs)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.records.corpus import Corpus
from trainers.m2can.batch import Outputs, sent
from trainers.m2can.collective import Collective
from trainers.m2can.network import FUSED, M2CAN
from trainers.validators.inputs import ValidatorInputs, spread
from trainers.validators.mixing import SHARE


def validator_rows(corpus: Corpus, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that the validators read: the target's training rows, the sources' labelled validation rows."""
    of_sources = [part.rows for part in corpus.val[:-1] if part is not None]
    rows = np.concatenate(of_sources) if of_sources else np.empty(0, np.int64)
    return corpus.train[-1].rows, rows[labels[rows] >= 0]


class ValidatorInputsCollector:
    """Takes the outputs of the rows set aside, batch by batch; afterwards every worker holds them all.

    Args:
        labels: of all rows, -1 where unlabelled; only the sources' are kept.
        network: the one that is scored.

    target_rows, source_rows: at most MOST_ROWS of `validator_rows`, ascending.
    """

    def __init__(self, corpus: Corpus, labels: np.ndarray, network: M2CAN) -> None:
        self.network = network
        self.target_rows, self.source_rows = (spread(rows) for rows in validator_rows(corpus, labels))
        self.source_labels = labels[self.source_rows].astype(np.int64)
        # Rows apart from the target's own may lie between its parts: one sorted list finds the place of each.
        self._rows = np.concatenate([self.target_rows, self.source_rows])
        self._order = np.argsort(self._rows, kind="stable")
        # Probabilities, fused features, and the classes by the text head and by the picture head.
        width, device = network.num_classes + FUSED + 2, next(network.parameters()).device
        self._seen = torch.zeros(len(self._rows), width, device=device)
        self._projected = torch.zeros(len(self.target_rows), 2 * network.projected, device=device)

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        """Keep what is wanted of a batch of one view and one domain. The host waits for nothing."""
        place = np.searchsorted(self._rows, rows, sorter=self._order).clip(max=len(self._rows) - 1)
        place = self._order[place]
        wanted = self._rows[place] == rows
        if not wanted.any():
            return
        probs_BC = outputs.fused_logits_DBC[0].softmax(-1)
        heads_2BC = torch.stack([outputs.text_logits_DBC[0], outputs.picture_logits_DBC[0]])
        seen = torch.cat([probs_BC, outputs.fused_DBK[0], heads_2BC.argmax(-1).T], 1).float()
        projected = torch.cat([outputs.text_VDBK[0, 0], outputs.picture_VDBK[0, 0]], 1).float()
        for kept, found in ((self._seen, seen), (self._projected, projected)):
            mine = np.flatnonzero(wanted & (place < len(kept)))
            at, taken = (sent(x, kept.device) for x in (place[mine], mine))
            kept.index_copy_(0, at, found.index_select(0, taken))

    @torch.inference_mode()
    def finish(self, collective: Collective) -> ValidatorInputs:
        """Exchange with the other workers and look at the mixtures; the network must be in eval mode."""
        seen = collective.sum_(self._seen).cpu()
        projected = collective.sum_(self._projected)
        classes, targets = self.network.num_classes, len(self.target_rows)
        probs, features = seen[:, :classes].numpy(), seen[:, classes:-2].numpy()
        heads_2R = seen[:, -2:].T.long().numpy()
        label = probs[:targets].argmax(1)
        first, second = pairs(targets)
        return ValidatorInputs(
            target_probs_NC=probs[:targets],
            target_features_NK=features[:targets],
            source_probs_MC=probs[targets:],
            source_features_MK=features[targets:],
            source_labels_M=self.source_labels,
            mixed_probs_RC=self._predict_mixtures(projected, first, second),
            mixed_dominant_R=label[first],
            mixed_other_R=label[second],
            target_modalities_2N=np.ascontiguousarray(heads_2R[:, :targets]),
            source_modalities_2M=np.ascontiguousarray(heads_2R[:, targets:]),
        )

    def _predict_mixtures(self, projected_NK: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Pairs are mixed behind the encoders, where texts can be mixed too, and brought back to unit length."""
        a, b = torch.from_numpy(first), torch.from_numpy(second)
        mixed = SHARE * projected_NK[a] + (1 - SHARE) * projected_NK[b]
        dtype = next(self.network.parameters()).dtype
        text, picture = (
            torch.nn.functional.normalize(x, dim=-1).to(dtype) for x in mixed.split(self.network.projected, 1)
        )
        fused = self.network.fusion(text[None, None], picture[None, None])[0, 0]
        logits = torch.stack([head(fused) for head in self.network.heads]).mean(0)
        return logits.softmax(-1).float().cpu().numpy()


def pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row and its partner, the same for every epoch and run: half way round the list of rows."""
    rows = np.arange(number)
    return rows, np.roll(rows, -(number // 2))
