"""Checkpoints: what is saved, written whole or not at all, read back exactly. Reading one executes nothing.

<checkpoint>/
    model/           all that prediction needs: model.safetensors, model.json, tokenizer.json; of a network with frozen
                     weights also frozen.json, which names the file beside the checkpoint that holds those. Beside them
                     reference.safetensors, with which later records are compared; see reference.py
    state/           all else that moves: training.safetensors, training.json
    evaluation.safetensors   predictions and scores of this epoch, for reports
    files.json       sizes and SHA-256 of the above; written last
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from datasets_manifest.errors import InputError
from datasets_manifest.files import digests, json_text, read_json, whole_folder
from trainers.encoders.weight_files import REFERENCE, WEIGHTS, FrozenWeights, read_tensors, read_weights, save_tensors
from trainers.m2can.floor import Network
from trainers.model.card import EVALUATION, SCHEMA_VERSION, ModelCard, card_files
from trainers.model.reference import SEEN_FILE, split_reference
from trainers.model.trained_parts import TrainedParts
from trainers.recipe.schema_versions import Migration, migrate


@dataclass(frozen=True)
class TrainingState:
    """All that moves, beside the network's own state dict.

    epoch: epochs completed. step: steps completed, over all epochs.
    arrays: selection and whatever else is a tensor, by name.
    values: what JSON holds.
    """

    epoch: int
    step: int
    arrays: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint at one moment, in host memory: training may go on while `write` runs in another thread.

    model: weights but for the frozen ones, which do not move. copied: recorded on the GPU behind the copies; None on a CPU.
    """

    model: dict[str, Tensor]
    frozen: FrozenWeights
    card: ModelCard
    training: dict[str, Tensor]
    training_json: str
    evaluation: dict[str, Tensor]
    copied: torch.cuda.Event | None

    def write(self, folder: Path) -> None:
        """Write a checkpoint into `folder`, which appears only when it is whole, and frozen weights once beside it.

        Raises:
            OSError: disk full or not writable; nothing is left behind.
        """
        if self.copied is not None:
            self.copied.synchronize()
        frozen = self.frozen.write(folder.parent)
        size = sum(x.nbytes for part in (self.model, self.training, self.evaluation) for x in part.values())
        with whole_folder(folder, size=size) as draft:
            write_model(draft / "model", self.model, self.card)
            if frozen is not None:
                _write_json(draft / "model" / REFERENCE, frozen)
            evaluation, seen = split_reference(self.evaluation)
            if seen:
                save_tensors(draft / "model" / SEEN_FILE, seen)
            (draft / "state").mkdir()
            save_tensors(draft / "state" / "training.safetensors", self.training)
            (draft / "state" / "training.json").write_text(self.training_json, encoding="utf-8")
            save_tensors(draft / EVALUATION, evaluation)
            _write_json(draft / "files.json", digests(draft))


def snapshot(
    parts: TrainedParts, frozen: FrozenWeights, card: ModelCard, state: TrainingState, evaluation: dict[str, Tensor]
) -> Snapshot:
    """Copy what moves. From a GPU the copies go to pinned memory, and nothing waits for them here."""
    tensors, groups = training_tensors(parts)
    tensors |= {f"arrays.{name}": tensor for name, tensor in state.arrays.items()}
    values = {"epoch": state.epoch, "step": state.step, "values": state.values, "groups": groups}
    weights = {name: x for name, x in parts.network.state_dict().items() if name not in frozen.tensors}
    copies = _copies(weights), _copies(tensors)
    copied = None
    if any(tensor.is_cuda for tensor in weights.values()):
        copied = torch.cuda.Event()
        copied.record()
    content = json_text({"schema_version": SCHEMA_VERSION} | values)
    return Snapshot(copies[0], frozen, card, copies[1], content, evaluation, copied)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(
            tensor.detach(), non_blocking=True
        )
        for name, tensor in tensors.items()
    }


def training_tensors(parts: TrainedParts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What training.safetensors and training.json hold of modules and optimizers: tensors by name, groups by optimizer."""
    tensors: dict[str, Tensor] = {}
    groups: dict[str, Any] = {}
    for name, module in parts.modules.items():
        tensors |= {f"modules.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in parts.optimizers.items():
        flat, groups[name] = _flatten_optimizer(optimizer)
        tensors |= {f"optimizers.{name}.{key}": value for key, value in flat.items()}
    return tensors, groups


def save_model(folder: Path, network: Network, card: ModelCard) -> None:
    """Write what prediction needs, complete in itself."""
    write_model(folder, network.state_dict(), card)


def write_model(folder: Path, weights: dict[str, Tensor], card: ModelCard) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, weights)
    for name, content in card_files(card).items():
        (folder / name).write_text(content, encoding="utf-8")


def load_model_weights(folder: Path, network: Network) -> None:
    """Raises InputError: missing or damaged, or not of this network."""
    try:
        network.load_state_dict(read_weights(folder))
    except RuntimeError as error:
        problem = f"does not fit its model.json ({str(error).splitlines()[-1].strip()})"
        raise InputError(problem, file=folder / WEIGHTS) from None


def load(folder: Path, parts: TrainedParts) -> TrainingState:
    """Put everything back and return the rest. The checkpoint's files are verified first.

    Raises:
        InputError: truncated, altered, or of another run's shape.
    """
    verify(folder)
    load_model_weights(folder / "model", parts.network)
    content = read_json(folder / "state" / "training.json")
    migrate(content, current=SCHEMA_VERSION, migrations=MIGRATIONS, file=folder / "state" / "training.json")
    tensors = read_tensors(folder / "state" / "training.safetensors")
    for name, module in parts.modules.items():
        module.load_state_dict(_below(tensors, f"modules.{name}."))
    for name, optimizer in parts.optimizers.items():
        _restore_optimizer(optimizer, _below(tensors, f"optimizers.{name}."), content["groups"][name])
    return TrainingState(content["epoch"], content["step"], _below(tensors, "arrays."), content["values"])


def verify(folder: Path) -> None:
    """Compare every file with files.json.

    Raises:
        InputError: names the first file that is missing, truncated or altered.
    """
    wanted = read_json(folder / "files.json")
    found = digests(folder)
    for name, digest in wanted.items():
        if found.get(name) != digest:
            problem = "is missing" if name not in found else "is truncated or altered"
            raise InputError(problem, file=folder / name, value=found.get(name), wanted=str(digest))


def _within_an_epoch(content: dict[str, Any]) -> None:
    """Version 1 began with checkpoints of epochs' ends only: no step of the next epoch was done."""
    content["values"].setdefault("steps_done", 0)


# Of training.json.
MIGRATIONS: dict[int, Migration] = {1: _within_an_epoch}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json_text(content), encoding="utf-8")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its state as tensors by `<parameter>.<key>`, and what is not a tensor as JSON."""
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
            else:
                scalars[f"{number}.{key}"] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    return tensors, {"param_groups": groups, "scalars": scalars}


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in [*tensors.items(), *rest["scalars"].items()]:
        number, _, key = name.partition(".")
        state["state"].setdefault(int(number), {})[key] = value
    for group, saved in zip(state["param_groups"], rest["param_groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        parameter = parameters[number]
        restored = optimizer.state[parameter]
        # load_state_dict casts to the parameter's type; counters stay what they were.
        if isinstance(entries.get("step"), Tensor):
            restored["step"] = entries["step"].clone()
        for key, value in restored.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # A fused step goes through memory: moments lie as their parameter does.
                restored[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
