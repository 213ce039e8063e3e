"""`m2can.Predictor`"""

from __future__ import annotations

from pathlib import Path
from typing import Self, cast

from services.model_files import model_files
from trainers.exported.predictor import ExportedPredictor, is_exported
from trainers.model import predictor


class Predictor(predictor.Predictor):
    """A trained model that predicts texts and pictures. Needs no Ray.

    `predict` takes frames and gives frames; given lists, it gives `Predictions`. `embed` gives the features behind them.

    Example:
        >>> import m2can
        >>> import pandas as pd
        >>> predictor = m2can.Predictor.load("m2can-mountain@candidate")
        >>> frame = pd.DataFrame({"text": ["a lovely day", ["two", "texts"]], "image": [None, "gone.jpg"]})
        >>> found = predictor.predict(frame)
        >>> list(found.columns[:3])
        ['label', 'confidence', 'prob_negative']
        >>> found["problem"].tolist()
        [None, '1 of 1 picture left out: gone.jpg: missing']
        >>> predictor.predict(["a lovely day"]).labels[0] in predictor.classes
        True
        >>> predictor.embed(frame).shape
        (2, 64)
    """

    @classmethod
    def load(
        cls, model: str | Path, device: str = "auto", *, tracking_uri: str | None = None, storage: str | Path = "runs"
    ) -> Self:
        """Load a model.

        Args:
            model: the folder of a run (its chosen checkpoint) or of a checkpoint; or a model of the registry: `NAME`,
                `NAME:VERSION`, `NAME@alias`, with or without `models:/`. Folders need no MLflow. A folder that
                `m2can models export` wrote is for the CPU.
            device: `cpu`, `cuda` or, as `auto` says, a GPU where there is one.
            tracking_uri: where MLflow is; None: MLFLOW_TRACKING_URI, or else the store in `storage`.

        Raises:
            InputError: no such model, or its files are damaged.
        """
        folder = model_files(model, tracking_uri, Path(storage))
        return cast(Self, _Exported(folder)) if is_exported(folder) else super().load(folder, device)


class _Exported(ExportedPredictor, Predictor):
    """An exported model as a Predictor of this module."""
