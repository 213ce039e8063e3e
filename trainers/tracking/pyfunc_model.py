"""The registered model, as MLflow loads it: this file is copied beside the weights and run at load ("model from code").

Input: a DataFrame with the columns `text` (a string or a list of strings) and `image` (one picture or a list: a path, or
the file's content as bytes or base64, with or without `data:image/…;base64,`). Either may be null or missing.
Output: the columns of Predictions.to_frame, in the input's order: `label`, `confidence` (probability of the label),
`prob_<class>` for each class, and among others `problem`: what was wrong with a row, such as a picture that cannot be read.
A row with neither text nor readable picture has no label.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel, PythonModelContext


class M2canModel(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        # Imported here: saving a model runs this file too, and must not need the network's libraries for that.
        from trainers.model.predictor import Predictor

        self._predictor = Predictor.load(context.artifacts["bundle"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        from datasets_manifest.records.frames import items_of

        images = [[_picture(item) for item in items_of(cell)] for cell in _column(model_input, "image")]
        return self._predictor.predict_usable(_column(model_input, "text"), images).to_frame(model_input.index)


def _column(table: pd.DataFrame, name: str) -> list[Any]:
    return list(table[name]) if name in table.columns else [None] * len(table)


def _picture(item: Any) -> Any:
    if not isinstance(item, str) or not item:
        return item  # the predictor knows bytes and structs of bytes and path
    if item.startswith("data:"):
        return base64.b64decode(item.partition(",")[2])
    # A base64 picture is far longer than a file name may be, so the look at the disk is left out for it.
    if len(item) < 4096 and os.path.exists(item):
        return item
    try:
        return base64.b64decode(item, validate=True)
    except binascii.Error:
        return item  # a path, to a file that is not there: the predictor says so


mlflow.models.set_model(M2canModel())
