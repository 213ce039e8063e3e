"""`m2can doctor` and `--version`; and what the command line does not import before it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services import doctor
from services.cli.main import app


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("M2CAN_DATA_ROOT", "MLFLOW_TRACKING_URI", "RAY_TRAIN_V2_ENABLED"):
        monkeypatch.delenv(name, raising=False)


def problems(findings: list[doctor.Finding]) -> set[str]:
    return {finding.name for finding in findings if finding.level == "problem"}


def test_versions_are_those_of_the_project_and_its_packages() -> None:
    import torch

    shown = CliRunner().invoke(app, ["--version"]).output.splitlines()
    found = dict(line.split(maxsplit=1) for line in shown)
    assert found["torch"] == torch.__version__.split("+")[0]
    assert f'version = "{found["m2can"]}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert {"python", "system", "ray", "mlflow"} <= found.keys()


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK", 0)
    assert "runs" not in problems(doctor.examine(tmp_path / "runs"))
    monkeypatch.setattr(doctor, "MIN_DISK", 2**70)
    monkeypatch.setattr(doctor, "MIN_MEMORY", 2**70)
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    found = doctor.examine(tmp_path / "runs", str(tmp_path / "nowhere"), "http://127.0.0.1:9")
    assert problems(found) == {"runs", "memory", "data root", "MLflow", "Ray Train"}
    assert all(finding.advice for finding in found if finding.level != "ok")


def test_known_data_sets_are_named(tmp_path: Path) -> None:
    (tmp_path / "AVA").mkdir()
    found = {finding.name: finding.found for finding in doctor.examine(tmp_path, str(tmp_path))}
    assert found["data root"].endswith(": AVA")


def test_a_missing_package_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "versions", lambda: {"torch": "missing", "ray": "2"})
    found = doctor.examine(tmp_path)[0]
    assert (found.level, found.found) == ("problem", "missing: torch")


def test_exit_code_and_json(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["doctor", "--json", "--storage", str(tmp_path)])
    assert json.loads(good.output)["ok"] is (good.exit_code == 0)
    bad = CliRunner().invoke(app, ["doctor", "--json", "--storage", str(tmp_path), "--data-root", "/nowhere/at/all"])
    assert bad.exit_code == 1 and json.loads(bad.output)["ok"] is False


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = (
        "import sys, services.cli.main; print([m for m in ('torch', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
