"""A checkpoint as version 0.1 wrote it still predicts and resumes.

checkpoint_0.1.json beside this file holds the JSON files of one and the names, types and shapes of its tensors, whose values
are drawn here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets_manifest.files import digests
from trainers.model import checkpoint
from trainers.model.build import build_network
from trainers.model.card import load_card
from trainers.model.predictor import Predictor
from trainers.model.trained_parts import build_trained_parts

OLD = Path(__file__).with_name("checkpoint_0.1.json")
TYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    content: dict[str, Any] = json.loads(OLD.read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(0)
    for name, tensors in content["tensors"].items():
        file = tmp_path / "checkpoint" / name
        file.parent.mkdir(parents=True)
        drawn = {
            key: torch.rand(shape, generator=generator).mul(0.1).to(TYPES[dtype])
            for key, (dtype, shape) in tensors.items()
        }
        save_file(drawn, file)
    folder = tmp_path / "checkpoint"
    (folder / "model" / "model.json").write_text(json.dumps(content["model.json"]))
    (folder / "model" / "tokenizer.json").write_text(content["tokenizer.json"])
    (folder / "state" / "training.json").write_text(json.dumps(content["training.json"]))
    (folder / "files.json").write_text(json.dumps(digests(folder)))
    return folder


def test_an_old_checkpoint_predicts(old: Path) -> None:
    predictor = Predictor.load(old)
    found = predictor.predict([["a sunny day"], ["rain"]], [[], []])
    assert found.probs.shape == (2, 3)
    assert np.allclose(found.probs.sum(1), 1)
    assert predictor.classes == ["negative", "neutral", "positive"]


def test_an_old_checkpoint_resumes(old: Path) -> None:
    card = load_card(old / "model")
    network = build_network(card.recipe, card.text_config, len(card.classes), load_weights=False)
    parts = build_trained_parts(card.recipe, network)
    state = checkpoint.load(old, parts)
    assert (state.epoch, state.step, state.values["steps_done"]) == (6, 228, 0)
    assert {"kept_rows", "kept_labels", "bad_rows"} <= set(state.arrays)
    saved = load_file(old / "state" / "training.safetensors")
    moment = parts.optimizers["network"].state_dict()["state"][0]["exp_avg"]
    assert torch.equal(moment, saved["optimizers.network.0.exp_avg"])
    assert parts.optimizers["network"].param_groups[0]["name"] == "text_encoder"


def test_a_registered_model_of_then_finds_the_predictor() -> None:
    """Its pyfunc_model.py, saved with it, imports this name where our packages are loaded already."""
    from trainers.predictor import Predictor as imported

    assert imported is Predictor
