"""A model that is served answers at once by torch, and by onnxruntime later; the answers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainers.tiny_run import make_loop, prepared_run
from trainers.exported.background import OnnxInBackground
from trainers.exported.predictor import ExportedPredictor
from trainers.model.checkpoint import save_model

TEXTS = ["steep path", "a long way up to the hut", "snow"]


@pytest.mark.slow
def test_onnx_takes_over_and_a_failed_export_leaves_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = make_loop(prepared_run(tmp_path))
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", loop.network, loop.card)
    served = OnnxInBackground.load(tmp_path / "model")
    at_once = served.predict(TEXTS).probs
    assert served.exported.wait(300)
    assert isinstance(served._now, ExportedPredictor), caplog.text
    np.testing.assert_allclose(served.predict(TEXTS).probs, at_once, atol=1e-5)

    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    again = OnnxInBackground(served, tmp_path / "model")
    assert again.exported.wait(300)
    assert again._now is served
    assert "is served by torch, because it could not be exported: " in caplog.text
