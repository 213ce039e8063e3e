"""What stands behind a network's predictions: each modality's own, and the encoders' features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.compute.precision import eval_batch_size, predicting
from trainers.m2can.batch import Batch
from trainers.m2can.network import M2CAN
from trainers.model.predictor import Predictor


class Inspector(Predictor):
    """A Predictor that looks into its network. Not for exported models, which have no such parts."""

    @torch.inference_mode()
    def modality_probs(self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None = None) -> np.ndarray:
        """What the text head and the picture head alone predict of each sample, [2, N, C]; NaN where it cannot be predicted.

        Args:
            texts, images: as `predict` takes them in lists.
        """
        found = np.full((2, len(texts), len(self.classes)), np.nan)
        for places, passed, batch in self._usable(texts, images, batch_size):
            with predicting(self._recipe, self.device):
                outputs = self.network(batch).single()
            heads = torch.stack([outputs.text_logits_DBC[0], outputs.picture_logits_DBC[0]])
            found[:, places] = heads.float().softmax(-1).cpu().numpy()[:, passed]
        return found

    @torch.no_grad()
    def encoder_features(
        self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None = None
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """The encoders' features of the U samples that can be predicted: of texts [U, K], of pictures [U, K'], places [U].

        Of what a sample lacks they are as the network reads them: learned ones where it has some.

        Args:
            texts, images: as `predict` takes them in lists.
        """
        network = self.network
        widths = network.text_encoder.width, network.picture_encoder.width
        text, picture = ([torch.empty(0, width, device=self.device, dtype=self.dtype)] for width in widths)
        known = [np.empty(0, np.int64)]
        for places, passed, batch in self._usable(texts, images, batch_size):
            text_NK = network.text_encoder(batch.text, batch.text_mask, batch.text_lengths)
            picture_NK = network.picture_encoder(batch.pictures, batch)
            if isinstance(network, M2CAN) and network.missing is not None:
                text_NK, picture_NK = network.missing(text_NK, picture_NK, batch.missing_N2)
            text.append(text_NK[passed])
            picture.append(picture_NK[passed])
            known.append(places)
        return torch.cat(text), torch.cat(picture), np.concatenate(known)

    def _usable(
        self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, list[int], Batch]]:
        """Places of the samples of a batch that can be predicted, their numbers in it, and the batch."""
        start = 0
        size = batch_size or eval_batch_size(self.card.recipe, self.device)
        for read, batch in self._read(texts, images, size, refuse_empty=False):
            if batch is not None:
                yield start + np.array(read.usable, np.int64), read.passed, batch
            start += len(read.bad)
