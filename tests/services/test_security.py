"""What comes from outside runs no code."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest

from datasets_manifest.errors import InputError
from services.jobs.job_request import VARIABLE, JobRequest
from tests.services.registered import Registered
from trainers.cluster.local_cluster import hide_token
from trainers.model.predictor import Predictor
from trainers.recipe import make_recipe


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_place_of_weights_is_not_run(registered: Registered, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    shutil.copytree(registered.bundles[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(InputError):
        Predictor.load(tmp_path / "model")
    assert not mark.exists()


def test_encoder_weights_from_elsewhere_are_not_run(tmp_path: Path) -> None:
    import torch

    from trainers.encoders.weights import load_weights_file

    mark, file = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"weight": Malice(mark)}, file)
    with pytest.raises(InputError):
        load_weights_file(torch.nn.Linear(1, 1), str(file), "encoders.picture.weights")
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"id": "../x", "kind": "train", "content": {}}', '{"id": "a", "kind": "sh", "content": {}}'],
)
def test_an_altered_request_is_refused_by_the_job(text: str) -> None:
    with pytest.raises(InputError, match=VARIABLE):
        JobRequest.decoded(text)


def test_yaml_tags_make_no_objects(tmp_path: Path) -> None:
    from trainers.recipe import load_recipe

    (tmp_path / "recipe.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{tmp_path}/ran]")
    with pytest.raises(InputError, match="is not YAML"):
        load_recipe(tmp_path / "recipe.yaml")
    assert not (tmp_path / "ran").exists()


def test_a_run_name_leads_nowhere_else() -> None:
    data = {"sources": ["/a.yaml"], "target": "/b.yaml"}
    for name in ("../up", "a/b", "/abs", ".hidden", "a b"):
        with pytest.raises(InputError, match=r"run\.name"):
            make_recipe({"data": data, "run": {"name": name}})


def test_rays_token_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "auth_token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    hide_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
