from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets_manifest.records.frames import texts_of
from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.model.predictor import Predictions, Predictor
from trainers.tracking import pyfunc_model
from trainers.tracking.registration import signature_for

COLUMNS = ["label", "confidence", "prob_no", "prob_yes", "disagreement", "head_labels", "bad_pictures", "problem"]


class FakePredictor:
    """Stands in for trainers.model.predictor.Predictor and keeps what it was asked."""

    def predict_usable(self, texts: list[Any], images: list[list[Any]]) -> Predictions:
        self.texts, self.images = list(map(texts_of, texts)), images
        probs = np.array([[0.25, 0.75]] * len(texts)).reshape(-1, 2)
        rows = len(texts)
        nothing: list[list[str]] = [[] for _ in texts]
        seen = np.zeros((rows, 64)), np.zeros((rows, 5))
        return Predictions(["no", "yes"], probs, ["yes"] * rows, np.zeros(rows), nothing, nothing, [None] * rows, *seen)


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
    assert list(answer.columns) == COLUMNS
    assert list(answer.index) == [10, 11, 12, 13, 14]
    wanted = {"label": "yes", "confidence": 0.75, "prob_no": 0.25, "prob_yes": 0.75, "problem": None}
    assert {name: answer.loc[12, name] for name in wanted} == wanted


def test_the_pyfunc_does_without_a_column_and_without_rows() -> None:
    fake, answer = predict(pd.DataFrame({"text": ["one"]}))
    assert (fake.texts, fake.images) == ([["one"]], [[]])
    assert len(answer) == 1
    _, answer = predict(pd.DataFrame({"text": [], "image": []}))
    assert list(answer.columns) == COLUMNS
    assert len(answer) == 0


def test_a_missing_picture_is_never_silent(tmp_path: Path) -> None:
    loop = make_loop(prepared_run(tmp_path))
    model = pyfunc_model.M2canModel()
    model._predictor = Predictor(loop.network, loop.card, loop.device)
    there = str(sorted((tmp_path / "postcards" / "mountain" / "images").iterdir())[0])
    images = [["gone.jpg", there], "gone.jpg", there, None]
    answer = model.predict(None, pd.DataFrame({"text": ["a day", None, "a day", None], "image": images}))
    assert answer["problem"].tolist() == [
        "1 of 2 pictures left out: gone.jpg: missing", "no picture can be read: gone.jpg: missing",
        None, "has neither text nor picture",
    ]  # fmt: skip
    assert answer["label"].isna().tolist() == answer["confidence"].isna().tolist() == [False, True, False, True]
    signature = signature_for(loop.card.classes)
    assert signature.outputs.input_names() == list(answer.columns)
    assert not [c.name for c in signature.outputs if c.required and answer[c.name].isna().any()]
