"""Predictions by torch at once, and by onnxruntime as soon as the model has been exported."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from datasets_manifest.errors import first_line
from trainers.exported.export import export_model
from trainers.exported.predictor import ExportedPredictor
from trainers.m2can.batch import Batch
from trainers.model.predictor import Predictor, examples

_log = logging.getLogger(__name__)


class OnnxInBackground(Predictor):
    """Answers with torch until a process of its own has exported the model, then with onnxruntime, on the CPU.

    An export that fails is logged, and torch goes on.

    exported: set once the export has come to its end, well or not.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        self._set_up(predictor.card, torch.device("cpu"), predictor.dtype)
        self._now: Predictor = predictor
        self.exported = threading.Event()
        threading.Thread(target=self._export, args=(folder,), daemon=True, name="m2can-export").start()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """Raises InputError: not a checkpoint, or damaged."""
        return cls(Predictor.load(folder, device), Path(folder))

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._now._compute(batch)

    def _export(self, folder: Path) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="m2can-onnx-") as made:
                out = Path(made) / "model"
                command = [sys.executable, "-m", "trainers.exported.background", str(folder), str(out)]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                weakref.finalize(self, process.kill)  # the service may end before it
                _, printed = process.communicate()
                if process.returncode != 0:
                    raise RuntimeError((printed.strip().splitlines() or ["no reason was given"])[-1])
                exported = ExportedPredictor(out, torch.get_num_threads())
                exported._compute(exported.example_batch())
                self._now = exported
        except Exception as error:  # whatever it is, the model is served
            _log.warning("the model is served by torch, because it could not be exported: %s", first_line(error))
        finally:
            self.exported.set()


if __name__ == "__main__":
    export_model(Predictor.load(sys.argv[1], "cpu"), Path(sys.argv[2]), "onnx", *examples())
