"""The command line: exit codes, messages, and prediction from a checkpoint folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.services.cli.conftest import Command
from tests.trainers.tiny_run import make_loop, prepared_run


@pytest.fixture
def m2can(folder: Path, monkeypatch: pytest.MonkeyPatch, run_m2can: Command) -> Command:
    """The command, in `folder`."""
    monkeypatch.chdir(folder)
    return run_m2can


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Postcards, and a checkpoint of one epoch on them."""
    place = tmp_path_factory.mktemp("cli")
    loop = make_loop(prepared_run(place, ["train.epochs=1"]))
    loop.run_epoch()
    loop.save(place / "checkpoint", {"kept_rows": torch.from_numpy(loop.pseudo_labels.rows)})
    return place


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml: there is no such file"),
        (("train", "recipe.yaml", "--set", "train.epoch=3"), "train.epochs"),
        (("train", "recipe.yaml", "--set", "train.epochs=many"), "train.epochs"),
        (("train", "recipe.yaml", "--floor-only", "--dry-run"), "--floor-only: goes without --dry-run, --profile and"),
        (("predict", "nowhere", "--text", "x"), "MODEL: there is no such folder"),
        (("predict", "checkpoint"), "nothing to predict"),
        (("predict", "checkpoint", "--image", "nowhere.jpg"), "nowhere.jpg: --image: there is no such picture"),
        (("models", "list"), "there is no MLflow store yet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, m2can: Command, arguments: tuple[str, ...], words: str
) -> None:
    (folder / "recipe.yaml").write_text("data: {sources: [a.yaml], target: b.yaml}\n")
    code, out, err = m2can(*arguments)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_the_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.cli.main", "train", "nowhere.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere.yaml: there is no such file" in done.stderr and "Traceback" not in done.stderr


def test_predict_and_evaluate_from_a_checkpoint_folder(folder: Path, m2can: Command) -> None:
    image = sorted((folder / "postcards" / "mountain" / "images").iterdir())[0]
    code, out, err = m2can("predict", "checkpoint", "--text", "a day", "--image", str(image), "--json")
    assert code == 0, err
    assert sum(json.loads(out)["probs"].values()) == pytest.approx(1, abs=1e-5)
    manifest = "postcards/mountain/manifest.yaml"
    code, out, err = m2can("predict", "checkpoint", "--data", manifest, "--out", "out/p.parquet")
    assert code == 0, err
    table = pq.read_table(folder / "out" / "p.parquet")
    ids = table["id"].to_pylist()
    assert [sum(name.startswith(f"mountain-{split}") for name in ids) for split in ("train", "val")] == [30, 12]
    code, out, err = m2can("evaluate", "checkpoint", "--data", manifest, "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["records"] == 12
    assert sum(map(sum, metrics["confusion"])) == 12


def test_start_from_is_the_recipes_key(folder: Path, m2can: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever YAML would make of it: a run may be called `12`."""
    (folder / "recipe.yaml").write_text("data: {sources: [a.yaml], target: b.yaml}\n")
    given: list[str | None] = []
    monkeypatch.setattr(
        "services.cli.commands.train.dry_run_recipe", lambda recipe, **_: given.append(recipe.train.start_from)
    )
    for name in ("m2can-sea:4", "12", "models:/m2can-sea@candidate"):
        assert m2can("train", "recipe.yaml", "--dry-run", "--start-from", name)[0] == 0
        assert given.pop() == name
