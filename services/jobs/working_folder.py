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
    total = count = 0
    largest: tuple[int, Path | None] = (0, None)
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            size = path.stat().st_size
            total, count, largest = total + size, count + 1, max(largest, (size, path), key=lambda pair: pair[0])
            if total > max_bytes:
                raise InputError(
                    "the code is too large to be sent with a job",
                    file=largest[1],
                    value=f"{total} bytes and more",
                    wanted=f"at most {max_bytes}; move data out of the packages",
                )
            copy = folder / name / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return CodePackage(folder, total, count)
