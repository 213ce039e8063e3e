"""The Python API: what it costs to import, what it takes, and that its examples and the notebook run."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import m2can
from tests.trainers.tiny_run import small_recipe

ROOT = Path(__file__).parents[2]
IMPORT_S = 0.3
HEAVY = ("torch", "ray", "mlflow", "transformers", "pyarrow", "pandas", "matplotlib")


def test_importing_costs_little() -> None:
    code = f"""
import sys, time
before = time.perf_counter()
import m2can
dir(m2can)
print(time.perf_counter() - before, [name for name in {HEAVY} if name in sys.modules])
"""
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split(" ", 1) for run in done), strict=True)
    assert min(map(float, seconds)) < IMPORT_S
    assert {line.strip() for line in loaded} == {"[]"}


def test_every_name_is_there_and_others_are_refused() -> None:
    assert not [name for name in m2can.__all__ if getattr(m2can, name) is None or name not in dir(m2can)]
    assert m2can.models.find.__module__ == "m2can.models"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        m2can.trian  # noqa: B018


def test_a_recipe_is_a_file_a_name_a_mapping_or_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")), encoding="utf-8")
    five = {"train.epochs": 5, "sam.rho": 0.125}
    wanted = m2can.load_recipe(file, overrides=five)
    assert (wanted.train.epochs, wanted.sam.rho) == (5, 0.125)
    values = recipe.model_dump(mode="json")
    assert [m2can.load_recipe(form, overrides=five) for form in (str(file), values, recipe)] == [wanted] * 3
    assert values == recipe.model_dump(mode="json")
    assert m2can.load_recipe("AVA").data.target.endswith("AVA")
    with pytest.raises(m2can.InputError, match=r"train\.epochs"):
        m2can.load_recipe(recipe, overrides={"train.epoch": 5})
    with pytest.raises(m2can.InputError, match="there is no such file"):
        m2can.train("nowhere.yaml")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> Path:
    """An empty working folder, without MLflow of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.slow
def test_examples_of_the_docstrings_run(place: Path) -> None:
    """Those of m2can.models and Predictor use what the example of m2can.train left; a sweep registers its winner
    under the same name."""
    import m2can.prediction
    import m2can.training

    run_examples(m2can.training, ["load_recipe", "train"])
    run_examples(m2can.models, ["find", "search", "fetch", "promote", "rollback"])
    run_examples(m2can.prediction, ["Predictor"])
    run_examples(m2can.training, ["tune"])


class WithoutRaylet(doctest.OutputChecker):
    """Leaves out what Ray's daemon prints on a busy machine."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        kept = [line for line in got.splitlines(keepends=True) if "(raylet)" not in line]
        return super().check_output(want, "".join(kept), optionflags)


def run_examples(module: ModuleType, names: list[str]) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(checker=WithoutRaylet(), optionflags=doctest.ELLIPSIS)
    told: list[str] = []
    for name in names:
        for example in finder.find(getattr(module, name), f"{module.__name__}.{name}"):
            assert example.examples, name
            runner.run(example, out=told.append)
            assert not runner.failures, "".join(told)


@pytest.mark.slow
def test_the_notebook_runs(place: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], len(notebook["cells"])) == (4, 10)
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
            if "epochs, workers" in "".join(cell["source"]):
                names |= {"records": 30, "epochs": 2}
    result = names["result"]
    assert isinstance(result, m2can.Result)
    assert result.last_epoch == 2 and result.report_page.is_file()
    shown = result._repr_html_()
    assert "target accuracy chosen" in shown and shown.count("<img ") >= 3
    probs = names["prediction"].probs[0]  # type: ignore[attr-defined]
    assert probs.sum() == pytest.approx(1, abs=1e-5)
