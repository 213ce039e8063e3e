"""Checkpoint → predictions, the same for evaluation, the registered model, and batch and online inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.stream.encode import collate, encode_samples, index_table
from trainers.m2can.network import M2CAN
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.build import build_network
from trainers.model.checkpoint import ModelCard, load_card, load_model_weights, model_folder
from trainers.model.device_batches import make_encoding, to_batch


@dataclass(frozen=True)
class Predictions:
    """Of N samples.

    probs: [N, C]. labels: class names. disagreement: the heads' variance (see refinement.score_samples), [N].
    bad: for each sample what was wrong with pictures that were skipped.
    head_labels: the class name that each head alone would give, N lists of H.
    """

    probs: np.ndarray
    labels: list[str]
    disagreement: np.ndarray
    bad: list[list[str]]
    head_labels: list[list[str]]


class Predictor:
    """A trained network with its way of reading. Needs neither Ray nor MLflow."""

    def __init__(self, network: M2CAN, card: ModelCard, device: torch.device) -> None:
        self.network = network.eval().to(device)
        self.card = card
        self.device = device
        self.dtype = next(network.parameters()).dtype
        self._encoding = make_encoding(card.recipe, card.vocabulary)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Predictor:
        """Read a checkpoint folder, or its `model` folder.

        Raises:
            InputError: not a checkpoint, or damaged.
        """
        place = model_folder(Path(folder))
        card = load_card(place)
        network = build_network(card.recipe, card.text_config, len(card.classes), load_weights=False)
        if card.recipe.train.precision == "fp64":
            network = network.double()
        load_model_weights(place, network)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return cls(network, card, torch.device(name))

    @property
    def classes(self) -> list[str]:
        return self.card.classes

    def predict(
        self,
        texts: Sequence[Sequence[str]],
        images: Sequence[Sequence[str | bytes]],
        batch_size: int = 64,
    ) -> Predictions:
        """Predict samples; each is a list of texts and a list of pictures (paths or file contents), either may be empty.

        Raises:
            InputError: lists of different lengths, or a sample with neither text nor picture.
        """
        if len(texts) != len(images):
            raise InputError("texts and images differ in number", value=(len(texts), len(images)))
        for number, (sentences, pictures) in enumerate(zip(texts, images, strict=True)):
            if not len(sentences) and not len(pictures):
                raise InputError("has neither text nor picture", field=f"sample {number + 1}")
        parts = list(self._batches(texts, images, batch_size))
        probs = np.concatenate([part[0] for part in parts]) if parts else np.empty((0, len(self.classes)))
        return Predictions(
            probs=probs,
            labels=[self.classes[c] for c in probs.argmax(1)],
            disagreement=np.concatenate([part[1] for part in parts]) if parts else np.empty(0),
            bad=[messages for part in parts for messages in part[2]],
            head_labels=[[self.classes[c] for c in sample] for part in parts for sample in part[3]],
        )

    @torch.inference_mode()
    def _batches(
        self, texts: Sequence[Sequence[str]], images: Sequence[Sequence[str | bytes]], batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, list[list[str]], list[list[int]]]]:
        for start in range(0, len(texts), batch_size):
            sentences = [list(sample) for sample in texts[start : start + batch_size]]
            pictures = [list(sample) for sample in images[start : start + batch_size]]
            numbers = np.arange(len(sentences))
            index = index_table(np.zeros_like(numbers), numbers, np.zeros_like(numbers))
            columns = encode_samples(sentences, pictures, index, self._encoding)
            for name, column in columns.items():
                index = index.append_column(name, column)
            host = collate(index, self._encoding.pictures.crop, self._encoding.vocabulary.pad_id)
            labels = np.full((1, len(sentences)), -1)
            outputs = self.network(to_batch(host, labels, device=self.device, dtype=self.dtype))
            logits_HBC = outputs.logits_HQDBC[:, 0, 0]
            probs = logits_HBC.mean(0).softmax(-1).cpu().numpy()
            variance = score_samples(logits_HBC).variance.cpu().numpy()
            yield probs, variance, columns["bad"].to_pylist(), logits_HBC.argmax(-1).T.tolist()
