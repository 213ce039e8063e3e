"""The command line: exit codes, messages, and prediction from a checkpoint folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.trainers.tiny_run import make_loop, prepared_run


def m2can(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Postcards, and a checkpoint of one epoch on them."""
    place = tmp_path_factory.mktemp("cli")
    loop = make_loop(prepared_run(place, ["train.epochs=1"]))
    loop.run_epoch()
    loop.save(place / "checkpoint", {"kept_rows": torch.from_numpy(loop.kept_rows)})
    return place


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml: there is no such file"),
        (("train", "recipe.yaml", "--set", "train.epoch=3"), "train.epochs"),
        (("train", "recipe.yaml", "--set", "train.epochs=many"), "train.epochs"),
        (("predict", "nowhere", "--text", "x"), "MODEL: there is no such folder"),
        (("predict", "checkpoint"), "nothing to predict"),
        (("predict", "checkpoint", "--image", "nowhere.jpg"), "nowhere.jpg: --image: there is no such picture"),
        (("models", "list"), "there is no MLflow store yet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    (folder / "recipe.yaml").write_text("data: {sources: [a.yaml], target: b.yaml}\n")
    done = m2can(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_predict_and_evaluate_from_a_checkpoint_folder(folder: Path) -> None:
    image = sorted((folder / "postcards" / "mountain" / "images").iterdir())[0]
    one = m2can("predict", "checkpoint", "--text", "a day", "--image", str(image), "--json", cwd=folder)
    assert one.returncode == 0, one.stderr
    answer = json.loads(one.stdout)
    assert sum(answer["probs"].values()) == pytest.approx(1, abs=1e-5)
    manifest = "postcards/mountain/manifest.yaml"
    many = m2can("predict", "checkpoint", "--data", manifest, "--out", "out/p.parquet", cwd=folder)
    assert many.returncode == 0, many.stderr
    table = pq.read_table(folder / "out" / "p.parquet")
    assert table.num_rows == 12
    assert table["id"][0].as_py().startswith("mountain-val")
    scored = m2can("evaluate", "checkpoint", "--data", manifest, "--json", cwd=folder)
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads(scored.stdout)
    assert metrics["records"] == 12
    assert sum(map(sum, metrics["confusion"])) == 12
