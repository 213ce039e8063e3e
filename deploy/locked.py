"""Which lines of requirements.lock an image needs:  python deploy/locked.py runtime|mlflow [--without-torch] > wanted.txt

The lock also holds what tests and documents need. uv writes behind each package who wanted it (`# via`); followed from
the packages that are asked for, that gives the part of the lock that an image installs, hashes and all.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
MLFLOW = ("mlflow", "boto3")
_TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


def packages(lock: str) -> dict[str, str]:
    """Normalised name → the package's lines; a package may stand there once for each of several Pythons."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.strip()):
        name = _name(block)
        found[name] = f"{found[name]}\n{block}" if name in found else block
    return found


def wanted_by(block: str) -> set[str]:
    """Names behind `# via`."""
    comments = re.findall(r"^\s+# +(.*)$", block, re.M)
    return {_name(comment.removeprefix("via").strip()) for comment in comments if comment.strip() != "via"}


def closure(lock: dict[str, str], roots: set[str]) -> dict[str, str]:
    """`roots` and everything they need.

    Raises:
        KeyError: a root that is not in the lock.
    """
    found = {root: lock[root] for root in roots}
    while new := {n: b for n, b in lock.items() if n not in found and wanted_by(b) & found.keys()}:
        found |= new
    return found


def runtime_roots(pyproject: str) -> set[str]:
    """The project's own dependencies, without the extras'."""
    return {_name(dependency) for dependency in tomllib.loads(pyproject)["project"]["dependencies"]}


def select(part: str, without_torch: bool = False) -> str:
    """The lines for `runtime` or `mlflow`."""
    roots = runtime_roots((ROOT / "pyproject.toml").read_text()) if part == "runtime" else set(MLFLOW)
    found = closure(locked(), roots)
    kept = [found[name] for name in sorted(found) if not (without_torch and _TORCH.fullmatch(name))]
    return "\n".join(kept) + "\n"


def version_of(package: str) -> str:
    """The locked version. Raises KeyError: not in the lock."""
    return locked()[package].split("==", 1)[1].split()[0]


@cache
def locked() -> dict[str, str]:
    """requirements.lock by package."""
    return packages(LOCK.read_text())


def _name(text: str) -> str:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["runtime", "mlflow"])
    parser.add_argument("--without-torch", action="store_true")
    arguments = parser.parse_args()
    sys.stdout.write(select(arguments.part, arguments.without_torch))
