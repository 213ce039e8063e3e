"""Predictions of an exported model: the same reading of texts and pictures, another runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets_manifest.errors import InputError
from trainers.exported.graph import FILES, INPUTS, inputs_of, require_packages
from trainers.m2can.batch import Batch
from trainers.model.card import load_card
from trainers.model.predictor import Predictor

Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]


def is_exported(folder: Path) -> bool:
    """Whether `folder` was written by `export_model`."""
    return any((folder / name).is_file() for name in FILES.values())


def load_predictor(folder: Path, device: str = "auto") -> Predictor:
    """Of a checkpoint, or of an exported model, which is for the CPU. Raises InputError: neither, or damaged."""
    return ExportedPredictor(folder) if is_exported(folder) else Predictor.load(folder, device)


class ExportedPredictor(Predictor):
    """A Predictor on the CPU whose network is an exported graph.

    Args:
        folder: what `export_model` wrote.
        threads: that onnxruntime computes with; None: as many as torch.

    Raises:
        InputError: not an exported model, or onnxruntime is not installed.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        if not is_exported(folder):
            raise InputError(
                "is not an exported model", file=folder, wanted=f"a folder with {' or '.join(FILES.values())}"
            )
        self._set_up(load_card(folder), torch.device("cpu"), torch.float32)
        self._run = _onnx(folder, threads) if (folder / FILES["onnx"]).is_file() else _torch(folder)

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._run(inputs_of(batch))


def _onnx(folder: Path, threads: int | None) -> Run:
    require_packages("onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / FILES["onnx"]), options, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        arrays: dict[str, np.ndarray] = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        logits, fused = session.run(None, arrays)
        return torch.from_numpy(logits), torch.from_numpy(fused)

    return run


def _torch(folder: Path) -> Run:
    module = torch.export.load(folder / FILES["torch"]).module()

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        logits, fused = module(*inputs)
        return logits, fused

    return run
