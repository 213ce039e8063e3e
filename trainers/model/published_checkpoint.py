"""Checkpoint files of the published implementation → a model folder of ours, and back. Reading one executes nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets_manifest.errors import InputError, first_line
from datasets_manifest.files import whole_file, whole_folder
from datasets_manifest.stream.encode import Vocabulary
from trainers.encoders.encoders import text_config
from trainers.m2can.floor import Network
from trainers.m2can.network import M2CAN
from trainers.model.build import build_network
from trainers.model.card import ModelCard
from trainers.model.checkpoint import save_model
from trainers.published.tensor_names import from_published, published_name, to_published
from trainers.recipe import Recipe

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
CLASSES = {2: ["low", "high"], 3: ["negative", "neutral", "positive"]}  # of the published tasks
_UNKNOWN = "unknown"
# A counter of positions that older transformers kept with the weights; it holds nothing learned.
_POSITIONS = "bert_model.embeddings.position_ids"
_SHOWN = 20


@dataclass(frozen=True)
class PublishedCheckpoint:
    """What a file holds, under our names.

    state: of M2CAN. epoch, best_acc: as the file says; best_acc was found with target labels.
    """

    file: Path
    state: dict[str, Tensor]
    epoch: int | None
    best_acc: float | None

    @property
    def num_heads(self) -> int:
        return len({name for name in self.state if re.fullmatch(r"heads\.\d+\.weight", name)})

    @property
    def num_classes(self) -> int:
        return len(self.state["heads.0.weight"])


def read_published(place: Path) -> PublishedCheckpoint:
    """Read a checkpoint file, or the only one of a folder.

    Raises:
        InputError: no such file, several of them, not a checkpoint of weights alone, or tensors that are not the network's.
    """
    file = _only_file(place)
    content = _load(file)
    wanted = 'a dict {"epoch", "model_state", "best_acc"}'
    state = content.get("model_state") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(state, dict):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError("is not a published checkpoint", file=file, value=found, wanted=wanted)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError("does not hold tensors by name", file=file, field=f"model_state.{name}", wanted=wanted)
    kept = {name: tensor for name, tensor in state.items() if name.removeprefix("module.") != _POSITIONS}
    ours, unknown = from_published(kept)
    if unknown:
        raise _misfit(file, unexpected=unknown)
    if "heads.0.weight" not in ours:
        raise _misfit(file, missing=["classifiers.0.linear.weight"])
    if ours["heads.0.weight"].dim() != 2:
        shape = list(ours["heads.0.weight"].shape)
        raise InputError("wrong shape", file=file, field="classifiers.0.linear.weight", value=shape, wanted="[C, 64]")
    epoch, best = content.get("epoch"), content.get("best_acc")
    best = best.item() if isinstance(best, Tensor) and best.numel() == 1 else best
    return PublishedCheckpoint(
        file,
        ours,
        epoch if isinstance(epoch, int) else None,
        float(best) if isinstance(best, int | float) else None,
    )


def recipe_of(found: PublishedCheckpoint) -> dict[str, Any]:
    """The tree of a `published` recipe for a checkpoint of which no recipe is known; its domains stay unknown."""
    sources = [f"{_UNKNOWN}-{number + 1}" for number in range(found.num_heads)]
    return {"preset": "published", "data": {"sources": sources, "target": _UNKNOWN}}


def import_published(
    found: PublishedCheckpoint, recipe: Recipe, vocabulary: Vocabulary, classes: list[str], out: Path
) -> ModelCard:
    """Write the model folder `out`, which appears only when it is whole.

    Args:
        recipe: with the published encoders, a source for each head.
        vocabulary: of the text encoder's tokenizer.

    Raises:
        InputError: `out` is there, or the tensors, classes or sources do not fit.
    """
    if out.exists():
        raise InputError("is there already", file=out, field="OUT", wanted="a new folder")
    _check_number(found, "classes", classes, found.num_classes)
    _check_number(found, "data.sources", recipe.data.sources, found.num_heads)
    limit = recipe.data.texts.most_tokens
    config = text_config(recipe.encoders.text, vocabulary.size, vocabulary.pad_id, limit)
    network = build_network(recipe, config, found.num_classes, load_weights=False)
    _fill(network, found)
    card = ModelCard(
        recipe=recipe,
        classes=classes,
        sources=[_domain(source) for source in recipe.data.sources],
        target=_domain(recipe.data.target),
        text_config=config,
        vocabulary=vocabulary,
    )
    with whole_folder(out) as draft:
        save_model(draft, network, card)
    return card


def export_published(network: Network, recipe: Recipe, out: Path, *, epoch: int | None = None) -> None:
    """Write a network in the published form; `best_acc` is NaN, since no target label was looked at.

    Raises:
        InputError: the network has other parts than the published one, or `out` is there.
    """
    if out.exists():
        raise InputError("is there already", file=out, field="OUT", wanted="a new file")
    parts = [
        ("encoders.text.pooling", recipe.encoders.text.pooling, "pooler"),
        ("encoders.picture.head", recipe.encoders.picture.head, "identity_linear"),
    ]
    for field, value, wanted in parts:
        if value != wanted:
            raise InputError("has no published form", field=field, value=value, wanted=wanted)
    try:
        state = to_published({name: tensor.detach().cpu() for name, tensor in network.state_dict().items()})
    except ValueError as error:
        raise InputError(f"has no published form ({error})", field="MODEL") from None
    with whole_file(out) as draft:
        torch.save({"epoch": -1 if epoch is None else epoch, "model_state": state, "best_acc": math.nan}, draft)


def _only_file(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError("there is no such file or folder", file=place, wanted="a published checkpoint")
    files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
    if len(files) != 1:
        names = [path.name for path in files]
        wanted = f"one file ending in {', '.join(SUFFIXES)}, or the name of one of them"
        raise InputError(f"holds {len(files)} checkpoints", file=place, value=names or None, wanted=wanted)
    return files[0]


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds, all of them mean the same here
        wanted = "a file of tensors and plain values that torch.save wrote"
        raise InputError(f"cannot be read as weights ({first_line(error)})", file=file, wanted=wanted) from None


def _fill(network: M2CAN, found: PublishedCheckpoint) -> None:
    expected = network.state_dict()
    missing = [published_name(name) or name for name in expected if name not in found.state]
    unexpected = [published_name(name) or name for name in found.state if name not in expected]
    if missing or unexpected:
        raise _misfit(found.file, missing, unexpected)
    for name, tensor in found.state.items():
        if tensor.shape != expected[name].shape:
            wanted = f"{list(expected[name].shape)}, as its encoders and classes have it"
            raise InputError(
                "wrong shape", file=found.file, field=published_name(name), value=list(tensor.shape), wanted=wanted
            )
    network.load_state_dict(found.state)


def _misfit(file: Path, missing: list[str] | None = None, unexpected: list[str] | None = None) -> InputError:
    parts = []
    for what, names in (("missing", missing or []), ("unexpected", unexpected or [])):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {what}: {', '.join(sorted(names)[:_SHOWN])}{more}")
    return InputError(f"its tensors are not the network's ({'; '.join(parts)})", file=file, field="model_state")


def _check_number(found: PublishedCheckpoint, field: str, names: list[str], wanted: int) -> None:
    if len(names) != wanted:
        raise InputError("does not fit the checkpoint", file=found.file, field=field, value=names, wanted=f"{wanted}")


def _domain(manifest: str) -> str:
    """The name of a domain as a recipe writes it."""
    return manifest.removeprefix("catalog:").partition("?")[0]
