"""The floor in a run's folder: `<run>/floor`, in the form of a checkpoint without training's state. A zero-shot classifier has
the same form in `<run>/zero_shot`.

<run>/floor/
    model/                   of a FloorNetwork; frozen weights are the run's. reference.safetensors as in a checkpoint
    evaluation.safetensors   its predictions, as in a checkpoint
    floor.json               its metrics by name
    files.json
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from datasets_manifest.files import digests, json_text, read_json, whole_folder
from trainers.encoders.weight_files import REFERENCE, FrozenWeights, save_tensors
from trainers.m2can.floor import FloorNetwork
from trainers.model.card import EVALUATION, FLOOR, ZERO_SHOT, ModelCard
from trainers.model.checkpoint import write_model
from trainers.model.reference import SEEN_FILE, split_reference

_METRICS = "floor.json"


def write_floor(
    run: Path,
    network: FloorNetwork,
    frozen: FrozenWeights,
    card: ModelCard,
    metrics: dict[str, float],
    evaluation: dict[str, Tensor],
    *,
    zero_shot: bool = False,
) -> Path:
    """Write the floor into a run's folder, whole or not at all, and frozen weights once beside it; its folder.

    Args:
        zero_shot: whether it is a zero-shot classifier.

    Raises:
        OSError: disk full or not writable.
    """
    weights = {name: x for name, x in network.state_dict().items() if name not in frozen.tensors}
    reference = frozen.write(run)
    size = sum(x.nbytes for part in (weights, evaluation) for x in part.values())
    folder = run / (ZERO_SHOT if zero_shot else FLOOR)
    with whole_folder(folder, size=size, replace=True) as draft:
        write_model(draft / "model", weights, replace(card, floor=not zero_shot, zero_shot=zero_shot))
        if reference is not None:
            (draft / "model" / REFERENCE).write_text(json_text(reference), encoding="utf-8")
        tensors, seen = split_reference(evaluation)
        save_tensors(draft / "model" / SEEN_FILE, seen)
        save_tensors(draft / EVALUATION, tensors)
        (draft / _METRICS).write_text(json_text(metrics), encoding="utf-8")
        (draft / "files.json").write_text(json_text(digests(draft)), encoding="utf-8")
    return folder


def floor_metrics(run: Path) -> dict[str, float] | None:
    """Of a run's floor, by name; None if it has none. Raises InputError: damaged."""
    file = run / FLOOR / _METRICS
    return {name: float(value) for name, value in read_json(file).items()} if file.is_file() else None
