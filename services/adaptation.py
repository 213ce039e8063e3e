"""A trained model for another target, by that target's records alone: neither sources nor labels are needed.

The encoders stay. Of a network, projections and fusion move (trainers.m2can.source_free); the floor is standardised by the new
target's own mean and deviation. Whether the model got better is not known without labels; what speaks against it is looked
for, and then the model stays as it is.

Legend: N record, K feature, C class.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.errors import InputError
from datasets_manifest.files import whole_folder
from datasets_manifest.manifest.loading import load_manifest
from services.assessment import records_for
from trainers.encoders.weight_files import save_tensors
from trainers.m2can.batch import Outputs
from trainers.m2can.floor import FloorHead, FloorNetwork, Network
from trainers.m2can.source_free import adapt_network, predicted
from trainers.model.card import ModelCard
from trainers.model.checkpoint import save_model
from trainers.model.inspection import Inspector
from trainers.model.predictor import Predictions, Predictor
from trainers.model.reference import MOST_RECORDS as OF_REFERENCE
from trainers.model.reference import SEEN_FILE, Seen, SourceScores
from trainers.validators.expected import ExpectedAccuracy
from trainers.validators.inputs import spread
from trainers.validators.structure import neighbour_consistency

LEAST_RECORDS = 20
MOST_RECORDS = 20_000  # that are adapted to, evenly spread
MOST_COMPARED = 4096  # whose neighbours are looked at
# By how much oftener neighbours must have one label before than after for the adapted model to be given up, chosen by
# benchmarks/source_free.py.
TOLERANCE = 0.01
# Of the model as it is: where no more than this share of errors is to be expected, adapting has lost as often as gained.
LEAST_TO_GAIN = 0.03


@dataclass(frozen=True)
class Adapted:
    """A network that was adapted, and what is known of it.

    records: of the target that it was adapted to. changed: share of them whose label is another one now. before, after:
    neighbour_consistency of the labels. harm: what speaks against the adapted network; None: nothing. expected: accuracy
    that the predictions before let expect; None: the model keeps no scores of its sources. accuracy_before, accuracy_after:
    by the labels that the records have, for those who look; None without. predictions: of the adapted network, of the records
    that its reference has.
    """

    network: Network
    card: ModelCard
    records: int
    changed: float
    before: float
    after: float
    harm: str | None
    expected: ExpectedAccuracy | None
    accuracy_before: float | None
    accuracy_after: float | None
    predictions: Predictions


def adapt(folder: Path, target: str, split: str = "train", *, name: str = "") -> Adapted:
    """Adapt the model in `folder` to the records of a manifest's split. Nothing is written.

    Args:
        name: of the model, for the card.

    Raises:
        InputError: other classes than the model's, too few records, or a model that cannot be adapted.
    """
    manifest = load_manifest(target)
    model = Inspector.load(folder)
    table = records_for(model.classes, manifest, split)
    table = table.take(spread(np.arange(table.num_rows), MOST_RECORDS))
    texts, images = table["texts"].to_pylist(), table["images"].to_pylist()
    text_NK, picture_NK, places = model.encoder_features(texts, images)
    if len(places) < LEAST_RECORDS:
        problem, wanted = "has too few records to adapt to", f"at least {LEAST_RECORDS} that can be read"
        raise InputError(problem, file=manifest.path, field=f"splits.{split}", value=len(places), wanted=wanted)
    network = adapted_network(model.network, text_NK, picture_NK, seed=model.card.recipe.train.seed)
    recipe = model.card.recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"target": str(manifest.path)})})
    card = replace(model.card, recipe=recipe, target=manifest.name, started_from=name or str(folder))
    with torch.no_grad():
        first, last = (predicted(each, text_NK, picture_NK) for each in (model.network, network))
    label_before_N, label_after_N = (each.fused_logits_DBC[0].argmax(1).cpu().numpy() for each in (first, last))
    compared = spread(np.arange(len(places)), MOST_COMPARED)
    features = standardised(text_NK, picture_NK)[compared]
    before, after = (neighbour_consistency(label_N[compared], features) for label_N in (label_before_N, label_after_N))
    sources = SourceScores.read(folder)
    expected = None if sources is None else sources.expected_accuracy(_seen(first))
    true_N = table["label"].to_numpy()[places]
    return Adapted(
        network=network,
        card=card,
        records=len(places),
        changed=float((label_before_N != label_after_N).mean()),
        before=before,
        after=after,
        harm=harm_of(network, label_before_N, label_after_N, before, after, expected),
        expected=expected,
        accuracy_before=_accuracy(label_before_N, true_N),
        accuracy_after=_accuracy(label_after_N, true_N),
        predictions=Predictor(network, card, model.device).predict_usable(*_reference(texts, images)),
    )


def adapted_network(network: Network, text_NK: Tensor, picture_NK: Tensor, *, seed: int) -> Network:
    """A copy of the network, adapted to features of its encoders.

    Raises:
        InputError: a zero-shot classifier.
    """
    if isinstance(network, FloorNetwork):
        if not isinstance(network.floor, FloorHead):
            wanted = "a trained network or a floor"
            raise InputError("is a zero-shot classifier: it has nothing that adapts", field="MODEL", wanted=wanted)
        head = copy.deepcopy(network.floor)
        x_NK = torch.cat([text_NK, picture_NK], 1).double()
        read_K = head.weight_CK.abs().sum(0) > 0
        head.mean_K.copy_(torch.where(read_K, x_NK.mean(0).to(head.mean_K), head.mean_K))
        deviation_K = x_NK.std(0, correction=0).clamp(min=1e-6).to(head.mean_K)
        head.deviation_K.copy_(torch.where(read_K, deviation_K, head.deviation_K))
        return FloorNetwork(network.text_encoder, network.picture_encoder, head)
    trained = copy.deepcopy(network).train()
    adapt_network(trained, text_NK, picture_NK, seed=seed)
    return trained.eval()


def harm_of(
    network: Network,
    label_before_N: np.ndarray,
    label_after_N: np.ndarray,
    before: float,
    after: float,
    expected: ExpectedAccuracy | None,
) -> str | None:
    """What speaks against an adapted network, in words. Of a floor neighbours said nothing where it was measured.

    Args:
        label_before_N, label_after_N: predicted classes. before, after: their neighbour_consistency.
        expected: accuracy of the network before it was adapted; None: it is not known.
    """
    if expected is not None and 1 - expected.accuracy < LEAST_TO_GAIN:
        return f"as it is, the model is expected to be right on {expected}: there is little to gain"
    if len(np.unique(label_after_N)) == 1 < len(np.unique(label_before_N)):
        return "all records would have one label"
    if after < before - TOLERANCE and not isinstance(network, FloorNetwork):
        return f"records that are alike have the same label less often ({before:.3f} before, {after:.3f} after, 0 by chance)"
    return None


def standardised(text_NK: Tensor, picture_NK: Tensor) -> np.ndarray:
    """Both modalities' features side by side, of unit variance, each modality of the same weight; zero where nothing varies."""
    parts = []
    for x_NK in (text_NK.double(), picture_NK.double()):
        centred_NK = x_NK - x_NK.mean(0)
        deviation_K = x_NK.std(0, correction=0)
        scaled_NK = centred_NK / deviation_K.clamp(min=1e-6)
        parts.append(scaled_NK / max(x_NK.shape[1], 1) ** 0.5)
    joined: np.ndarray = torch.cat(parts, 1).cpu().numpy()
    return joined


def write_adapted(folder: Path, found: Adapted) -> None:
    """Write the model, complete in itself, whole or not at all. It has no scores of the sources: they were another network's.

    Raises:
        OSError: disk full or not writable.
    """
    with whole_folder(folder) as draft:
        save_model(draft, found.network, found.card)
        save_tensors(draft / SEEN_FILE, found.predictions.seen.tensors())


def _seen(outputs: Outputs) -> Seen:
    """What an estimate of the accuracy reads of a network's outputs."""
    probs_NC, fused_NF = (x[0].float().cpu().numpy() for x in (outputs.fused_logits_DBC.softmax(-1), outputs.fused_DBK))
    return Seen(probs_NC, fused_NF, np.empty((len(probs_NC), 0)))


def _reference(texts: list[list[str]], images: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """The records that later ones will be compared with."""
    rows = spread(np.random.default_rng(0).permutation(len(texts)), OF_REFERENCE)
    return [texts[n] for n in rows], [images[n] for n in rows]


def _accuracy(label_N: np.ndarray, true_N: np.ndarray) -> float | None:
    known_N = true_N >= 0
    return float((label_N == true_N)[known_N].mean()) if known_N.any() else None
