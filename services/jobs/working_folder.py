"""The code a job runs: our packages, copied into a folder that Ray sends as the job's working directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from datasets_manifest.errors import InputError

PACKAGES = ("datasets_manifest", "trainers", "tuning", "services", "m2can")
MAX_BYTES = 20 * 2**20


@dataclass(frozen=True)
class CodePackage:
    """folder: holds the packages side by side. bytes: their size, unpacked."""

    folder: Path
    bytes: int
    files: int


def pack_code(folder: Path, max_bytes: int = MAX_BYTES) -> CodePackage:
    """Copy the installed packages, their recipes and page templates too, into the new `folder`; caches are left out.

    Raises:
        InputError: more than `max_bytes`: a package holds something that is not code.
    """
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            root = next(iter(spec.submodule_search_locations))
            shutil.copytree(root, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > max_bytes:
        largest = max(sizes, key=lambda path: sizes[path]).relative_to(folder)
        wanted = f"at most {max_bytes}; move data out of the packages"
        raise InputError(
            "the code is too large to be sent with a job", file=largest, value=f"{total} bytes", wanted=wanted
        )
    return CodePackage(folder, total, len(sizes))
