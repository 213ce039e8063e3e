from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from trainers.tracking import pyfunc_model


class FakePredictor:
    """Stands in for trainers.model.predictor.Predictor and keeps what it was asked."""

    classes = ("no", "yes")

    def predict(self, texts: list[list[str]], images: list[list[Any]]) -> Any:
        self.texts, self.images = texts, images
        probs = np.array([[0.25, 0.75]] * len(texts)).reshape(-1, 2)
        return SimpleNamespace(probs=probs, labels=["yes"] * len(texts))


def predict(table: pd.DataFrame) -> tuple[FakePredictor, pd.DataFrame]:
    model = pyfunc_model.M2canModel()
    model._predictor = fake = FakePredictor()
    return fake, model.predict(None, table)


def test_the_pyfunc_takes_every_form_of_text_and_picture(tmp_path: Path) -> None:
    there = tmp_path / "there.jpg"
    there.write_bytes(b"\xff\xd8")
    coded = base64.b64encode(b"\xff\xd8picture").decode()
    table = pd.DataFrame(
        {
            "text": ["one", ["two", "three"], None, float("nan"), np.array(["four"], dtype=object)],
            "image": [str(there), [coded, f"data:image/png;base64,{coded}"], b"raw", "gone/nowhere.jpg", None],
        },
        index=[10, 11, 12, 13, 14],
    )
    fake, answer = predict(table)
    assert fake.texts == [["one"], ["two", "three"], [], [], ["four"]]
    assert fake.images == [[str(there)], [b"\xff\xd8picture"] * 2, [b"raw"], ["gone/nowhere.jpg"], []]
    assert list(answer.columns) == ["label", "confidence", "prob_no", "prob_yes"]
    assert list(answer.index) == [10, 11, 12, 13, 14]
    assert answer.loc[12].to_dict() == {"label": "yes", "confidence": 0.75, "prob_no": 0.25, "prob_yes": 0.75}


def test_the_pyfunc_does_without_a_column_and_without_rows() -> None:
    fake, answer = predict(pd.DataFrame({"text": ["one"]}))
    assert (fake.texts, fake.images) == ([["one"]], [[]])
    assert len(answer) == 1
    _, answer = predict(pd.DataFrame({"text": [], "image": []}))
    assert list(answer.columns) == ["label", "confidence", "prob_no", "prob_yes"]
    assert len(answer) == 0
