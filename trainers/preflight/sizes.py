"""How large a run's weights, gradients and optimizer state are, known before any of them exists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets_manifest.files import json_text
from trainers.compute.precision import dtype_of
from trainers.encoders.weight_files import FrozenWeights
from trainers.m2can.network import M2CAN
from trainers.model.card import ModelCard, card_files
from trainers.model.checkpoint import training_tensors
from trainers.model.trained_parts import TrainedParts, build_trained_parts
from trainers.recipe import Recipe
from trainers.recipe.run_sections import Checkpoints

_REFERENCE = 256  # frozen.json


@dataclass(frozen=True)
class StateSizes:
    """Bytes that do not depend on the batch.

    files: a checkpoint's files but for what depends on the number of rows (disk.py adds that).
    frozen: the file of frozen weights, which a run writes once.
    memory: on each worker: weights, gradients, optimizer state, and SAM's perturbation.
    """

    files: int
    frozen: int
    memory: int


def state_sizes(card: ModelCard, network: M2CAN) -> StateSizes:
    """Sizes of everything that the loop trains and a checkpoint saves.

    Args:
        network: of the recipe; it is moved to the meta device, so it loses its weights and frees their memory.
    """
    parts = _with_state(card.recipe, network)
    weights, frozen = parts.network.state_dict(), FrozenWeights(parts.network).tensors
    moving = {name: x for name, x in weights.items() if name not in frozen}
    training, groups = training_tensors(parts)
    # The recipe is part of the files: a size that followed from `checkpoint.max_disk` would move with what it limits.
    plain = replace(card, recipe=card.recipe.model_copy(update={"checkpoint": Checkpoints()}))
    texts = sum(len(text.encode()) for text in [*card_files(plain).values(), json_text(groups)])
    gradients = [p.grad for p in _trained(parts) if p.grad is not None]
    perturbed = [p for p in network.parameters() if p.requires_grad and card.recipe.sam.rho > 0]
    return StateSizes(
        files=safetensors_bytes(moving) + safetensors_bytes(training) + texts + (_REFERENCE if frozen else 0),
        frozen=safetensors_bytes(frozen) if frozen else 0,
        memory=_bytes([*weights.values(), *training.values(), *gradients, *perturbed]),
    )


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that holds these tensors, a little more than exact."""
    end = _bytes(tensors.values())
    header = {name: {"dtype": "BF16", "shape": [*x.shape], "data_offsets": [end, end]} for name, x in tensors.items()}
    return end + len(json.dumps(header)) + 16


def _with_state(recipe: Recipe, network: M2CAN) -> TrainedParts:
    """The parts on the meta device after one step of the optimizers, which then have all their state."""
    network.to("meta", dtype_of(recipe))
    with torch.device("meta"):
        parts = build_trained_parts(recipe, network)
    for parameter in _trained(parts):
        parameter.grad = torch.empty_like(parameter)
    for optimizer in parts.optimizers.values():
        optimizer.step()
    return parts


def _trained(parts: TrainedParts) -> list[Tensor]:
    return [p for optimizer in parts.optimizers.values() for group in optimizer.param_groups for p in group["params"]]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
