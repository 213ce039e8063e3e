"""Checkpoint → predictions, the same for evaluation, the registered model, and batch and online inference."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import cv2
import numpy as np
import torch

from datasets_manifest.errors import InputError
from datasets_manifest.records import frames
from datasets_manifest.stream.encode import collate, encode_samples, index_table
from trainers.compute.device_batches import make_encoding, to_batch
from trainers.compute.feed import Feed
from trainers.compute.precision import choose_layout, eval_batch_size, for_prediction, picture_form, predicting
from trainers.m2can.batch import Batch
from trainers.m2can.floor import Network
from trainers.m2can.network import FUSED
from trainers.m2can.pseudo_labels import score_samples
from trainers.model.card import ModelCard, model_folder
from trainers.model.reference import FACTS, Seen, facts_of, unknown_token
from trainers.model.trained_network import load_network

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

EMPTY = "has neither text nor picture"


def examples() -> tuple[list[str], list[bytes]]:
    """Two texts of different lengths, and a picture for each: something to try a model with."""
    pictures = [cv2.imencode(".png", np.full((8, 8, 3), grey, np.uint8))[1].tobytes() for grey in (64, 192)]
    return ["two words", "these three words"], pictures


@dataclass(frozen=True)
class Predictions:
    """Of N samples.

    classes: their C names. probs: [N, C]; NaN for a sample that cannot be predicted.
    labels: class names; None for a sample that cannot be predicted.
    disagreement: the heads' variance (see pseudo_labels.score_samples), [N].
    bad: for each sample what was wrong with pictures that were skipped.
    head_labels: the class name that each head alone would give, N lists of H.
    problems: for each sample what was wrong with it, None if nothing was. A sample without text none of whose pictures can
    be read cannot be predicted; of others the pictures that cannot be read are left out.
    features: fused, before the classifier heads, [N, 64]. facts: see reference.FACTS, [N, F]. NaN where not predicted.
    """

    classes: list[str]
    probs: np.ndarray
    labels: list[str | None]
    disagreement: np.ndarray
    bad: list[list[str]]
    head_labels: list[list[str]]
    problems: list[str | None]
    features: np.ndarray
    facts: np.ndarray

    @property
    def seen(self) -> Seen:
        """What there was of the samples that were predicted, for a comparison with others."""
        known_N = ~np.isnan(self.probs).any(axis=1)
        return Seen(self.probs[known_N], self.features[known_N], self.facts[known_N])

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the label, [N]; NaN without one."""
        return self.probs.max(axis=1)

    def to_frame(self, index: Any = None) -> pd.DataFrame:
        """Columns `label`, `confidence`, `prob_<class>` for each class, `disagreement`, `head_labels`, `bad_pictures` and
        `problem`, a row a sample."""
        import pandas as pd

        columns: dict[str, Any] = {"label": self.labels, "confidence": self.confidence}
        columns |= {f"prob_{name}": self.probs[:, number] for number, name in enumerate(self.classes)}
        columns |= {"disagreement": self.disagreement, "head_labels": self.head_labels}
        columns |= {"bad_pictures": self.bad, "problem": self.problems}
        kinds = {"label": object, "problem": object}  # None where there is none; pandas' strings would have NaN
        return pd.DataFrame({name: pd.Series(cells, index, kinds.get(name)) for name, cells in columns.items()})


@dataclass(frozen=True)
class _Read:
    """What is known of a batch of B samples before the network has it.

    usable: places of the U samples that can be predicted. passed: their numbers among those that the network gets.
    bad, problems: see Predictions, for all B. facts_UF: of those that can be predicted.
    """

    usable: list[int]
    passed: list[int]
    bad: list[list[str]]
    problems: list[str | None]
    facts_UF: np.ndarray


@dataclass(frozen=True)
class _Scored:
    """A batch of B samples after its pass through the network.

    read: see _Read. logits_HUC: of each head. fused_UK: what the heads see.
    """

    read: _Read
    logits_HUC: torch.Tensor
    fused_UK: torch.Tensor

    def spread(self, values_U: torch.Tensor | np.ndarray) -> np.ndarray:
        """A row for each of the B samples; NaN for those that were not predicted."""
        found = np.full((len(self.read.bad), *values_U.shape[1:]), np.nan)
        found[self.read.usable] = values_U.cpu().numpy() if isinstance(values_U, torch.Tensor) else values_U
        return found


class Predictor:
    """A trained network with its way of reading. Needs neither Ray nor MLflow.

    On a GPU it computes in the precision that it was trained in, on a CPU in float32; see precision.for_prediction.
    """

    def __init__(self, network: Network, card: ModelCard, device: torch.device) -> None:
        self.network = network.eval().to(device)
        self._set_up(card, device, next(network.parameters()).dtype)
        choose_layout(self.network, self._recipe, device)

    def _set_up(self, card: ModelCard, device: torch.device, dtype: torch.dtype) -> None:
        """All but the network."""
        self.card, self.device, self.dtype = card, device, dtype
        self._recipe = for_prediction(card.recipe, device)
        self._pictures = picture_form(self._recipe, device)
        self.encoding = make_encoding(card.recipe, card.vocabulary)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Self:
        """Read a checkpoint folder, its `model` folder, or the chosen checkpoint of a run's folder.

        Raises:
            InputError: not a checkpoint, or damaged.
        """
        network, card = load_network(model_folder(Path(folder)))
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return cls(network, card, torch.device(name))

    @property
    def classes(self) -> list[str]:
        return self.card.classes

    @overload
    def predict(
        self, samples: Sequence[str | Sequence[str]], images: Sequence[Any] | None = None, batch_size: int | None = None
    ) -> Predictions: ...

    @overload
    def predict(self, samples: Any, images: None = None, batch_size: int | None = None) -> Any: ...

    def predict(self, samples: Any, images: Sequence[Any] | None = None, batch_size: int | None = None) -> Any:
        """Predict samples.

        Args:
            samples: a frame with the columns `text`, `image` or both (a pandas DataFrame, a `datasets.Dataset`); or a list
                with the texts of each sample: a string or a list of strings.
            images: without a frame, the pictures of each sample: one or a list. A picture is a path, the bytes of a file,
                a PIL image, or a mapping of `bytes` and `path`.
            batch_size: samples at a time; None: the recipe's `train.eval_batch_size`.

        Returns:
            of a frame a DataFrame with its index and the columns of `Predictions.to_frame`, in which `problem` says what
            was wrong with a row; otherwise Predictions.

        Raises:
            InputError: lists of different lengths, a value that is neither text nor picture, or, in lists, a sample
                with neither.
        """
        if frames.is_frame(samples):
            return self._predict_frame(samples, images, batch_size)
        texts, pictures = _lists(samples, images)
        return self._predict(texts, pictures, batch_size, refuse_empty=True)

    def embed(self, samples: Any, images: Sequence[Any] | None = None, batch_size: int | None = None) -> np.ndarray:
        """What the classifier heads see of each sample: the fused features of text and pictures, [N, 64].

        Args:
            samples, images: as `predict` takes them. A row of a frame that cannot be predicted is NaN.

        Raises:
            InputError: see `predict`.
        """
        framed = frames.is_frame(samples)
        texts, pictures = _columns(samples, images)[1:] if framed else _lists(samples, images)
        parts = self._scored(texts, pictures, batch_size, refuse_empty=not framed)
        features = [part.spread(part.fused_UK) for part in parts]
        return np.concatenate([np.empty((0, FUSED)), *features])

    def predict_usable(self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None = None) -> Predictions:
        """As `predict` with lists; a sample with neither text nor picture has a problem in place of a prediction."""
        return self._predict(*_lists(texts, images), batch_size, refuse_empty=False)

    def _predict_frame(self, frame: Any, images: object, batch_size: int | None) -> pd.DataFrame:
        index, texts, pictures = _columns(frame, images)
        return self._predict(texts, pictures, batch_size, refuse_empty=False).to_frame(index)

    def _predict(
        self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None, *, refuse_empty: bool
    ) -> Predictions:
        classes = self.classes
        parts = list(self._scored(texts, images, batch_size, refuse_empty=refuse_empty))
        probs = [part.spread(part.logits_HUC.mean(0).softmax(-1)) for part in parts]
        variance = [part.spread(score_samples(part.logits_HUC).variance) for part in parts]
        head_labels: list[list[str]] = []
        for part in parts:
            names: list[list[str]] = [[] for _ in part.read.bad]
            for place, heads in zip(part.read.usable, part.logits_HUC.argmax(-1).T.tolist(), strict=True):
                names[place] = [classes[c] for c in heads]
            head_labels += names
        probs_NC = np.concatenate([np.empty((0, len(classes))), *probs])
        known_N = ~np.isnan(probs_NC).any(axis=1)
        return Predictions(
            classes=classes,
            probs=probs_NC,
            labels=[classes[row.argmax()] if known else None for row, known in zip(probs_NC, known_N, strict=True)],
            disagreement=np.concatenate([np.empty(0), *variance]),
            bad=[messages for part in parts for messages in part.read.bad],
            head_labels=head_labels,
            problems=[problem for part in parts for problem in part.read.problems],
            features=np.concatenate([np.empty((0, FUSED)), *(part.spread(part.fused_UK) for part in parts)]),
            facts=np.concatenate([np.empty((0, len(FACTS))), *(part.spread(part.read.facts_UF) for part in parts)]),
        )

    @torch.inference_mode()
    def _scored(
        self, texts: Sequence[Any], images: Sequence[Any], batch_size: int | None, *, refuse_empty: bool
    ) -> Iterator[_Scored]:
        """Batch by batch: a few batches of pictures are in memory. A thread reads the next ones meanwhile."""
        rows = batch_size or eval_batch_size(self.card.recipe, self.device)
        reading = self._read(texts, images, rows, refuse_empty=refuse_empty)
        with Feed(reading, self.device) if len(texts) > rows else contextlib.nullcontext(reading) as batches:
            for read, batch in batches:
                if batch is None:
                    logits = torch.empty(len(self.card.sources), 0, len(self.classes), device=self.device)
                    yield _Scored(read, logits, torch.empty(0, FUSED, device=self.device))
                    continue
                logits, fused = self._compute(batch)
                yield _Scored(read, logits[:, read.passed], fused[read.passed])

    def _compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of each head [H, B, C] and fused features [B, 64]."""
        with predicting(self._recipe, self.device):
            outputs = self.network(batch).single()
        return outputs.logits_HQDBC[:, 0, 0], outputs.fused_DBK[0]

    def example_batch(self) -> Batch:
        """The `examples`, on the device."""
        texts, images = examples()
        batch, *_ = self._batch([[text] for text in texts], [[image] for image in images])
        assert batch is not None
        return batch

    def _read(
        self, texts: Sequence[Any], images: Sequence[Any], batch_size: int, *, refuse_empty: bool
    ) -> Generator[tuple[_Read, Batch | None]]:
        """The samples that can be predicted as batches on the device; None where a batch has none."""
        for start in range(0, len(texts), batch_size):
            numbers = range(start, min(start + batch_size, len(texts)))
            sentences = [frames.texts_of(texts[n], f"sample {n + 1}, text") for n in numbers]
            pictures = [frames.pictures_of(images[n], f"sample {n + 1}, image") for n in numbers]
            full = [place for place in range(len(numbers)) if sentences[place] or pictures[place]]
            if refuse_empty and len(full) < len(numbers):
                empty = next(place for place in range(len(numbers)) if place not in full)
                raise InputError(EMPTY, field=f"sample {start + empty + 1}")
            batch, skipped, facts = self._batch([sentences[p] for p in full], [pictures[p] for p in full])
            problems: list[str | None] = [EMPTY] * len(numbers)
            bad: list[list[str]] = [[] for _ in numbers]
            usable, passed = [], []
            for number, (place, messages) in enumerate(zip(full, skipped, strict=True)):
                tried = min(len(pictures[place]), self.encoding.pictures.max_pictures)
                bad[place], problems[place] = messages, None
                if len(messages) == tried and not sentences[place]:
                    problems[place] = f"no picture can be read: {messages[0]}"
                    continue
                usable.append(place)
                passed.append(number)
                if messages:
                    noun = "picture" if tried == 1 else "pictures"
                    problems[place] = f"{len(messages)} of {tried} {noun} left out: {'; '.join(messages)}"
            yield _Read(usable, passed, bad, problems, facts[passed]), batch

    def _batch(
        self, texts: list[list[str]], pictures: list[list[str | bytes]]
    ) -> tuple[Batch | None, list[list[str]], np.ndarray]:
        """The samples on the device, what was wrong with the pictures of each, and its facts."""
        if not texts:
            return None, [], np.empty((0, len(FACTS)))
        numbers = np.arange(len(texts))
        index = index_table(np.zeros_like(numbers), numbers, np.zeros_like(numbers))
        columns = encode_samples(texts, pictures, index, self.encoding)
        for name, column in columns.items():
            index = index.append_column(name, column)
        host = collate(index, self.encoding)
        labels = np.full((1, len(texts)), -1)
        batch = to_batch(host, labels, device=self.device, dtype=self.dtype, pictures=self._pictures)
        facts = facts_of(host, unknown_token(self.card.vocabulary.json))
        return batch, columns["bad"].to_pylist(), facts


def _lists(texts: Any, images: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The texts and the pictures of each sample. Raises InputError: one value in place of a list, or lengths differ."""
    for name, given in (("texts", texts), ("images", images)):
        if given is not None and (isinstance(given, str | bytes | dict) or not hasattr(given, "__iter__")):
            wanted = "a list with an entry for each sample, or a frame"
            raise InputError("is not a list of samples", field=name, value=given, wanted=wanted)
    texts = [None] * len(list(images or [])) if texts is None else list(texts)
    images = [None] * len(texts) if images is None else list(images)
    if len(texts) != len(images):
        raise InputError("texts and images differ in number", value=(len(texts), len(images)))
    return texts, images


def _columns(frame: Any, images: object) -> tuple[Any, list[Any], list[Any]]:
    """A frame's index, its texts and its pictures."""
    if images is not None:
        raise InputError("does not go with a frame", field="images", wanted="a column `image`")
    table = frames.to_pandas(frame)
    frames.require_content(table)
    return table.index, frames.column(table, frames.TEXT), frames.column(table, frames.IMAGE)
