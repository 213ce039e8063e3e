"""The wheel, installed into an environment of its own, does what a newcomer tries first."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_IN_THE_WHEEL = ("tests", "benchmarks", "deploy", "docs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is tracked: a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.endswith((".py", ".yaml", ".toml")) or name in ("LICENSE", "README.md"):
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "src" / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "src")]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.split("/")[0] in NOT_IN_THE_WHEEL]
    for package in ("datasets_manifest", "trainers", "tuning", "services", "m2can"):
        sources = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py") if "__pycache__" not in p.parts}
        assert sources <= set(names), sources - set(names)
    assert {"trainers/recipe/recipes/demo.yaml", "datasets_manifest/manifest/catalog/AVA.yaml"} <= set(names)


@pytest.mark.slow
def test_wheel_installs_and_works(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    scripts = place / "bin"
    install = [str(scripts / "python"), "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies are those of this environment; behind the new one's own packages, so that the wheel is used.
    (own,) = (place / "lib").glob("python*/site-packages")
    places = [place for place in sys.path if place.endswith("site-packages")]
    (own / "dependencies.pth").write_text("\n".join(places) + "\n")

    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def m2can(*arguments: str) -> str:
        command = [str(scripts / "m2can"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert m2can("--version").split()[:2] == ["m2can", version]
    assert len(m2can("data", "generate", "cards", "--train", "6", "--val", "3").splitlines()) == 3
    assert "postcards" in m2can("data", "show", "postcards")
    assert (tmp_path / "cards" / "city" / "manifest.yaml").is_file()
    code = "import services.cli.main as m; print(m.__file__)"
    command = [str(scripts / "python"), "-c", code]
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert used.stdout.startswith(str(own))
